//! Stopping and going on.

use paguro_migration::machine::{Machine, Stay, WriterClass};
use paguro_vmm::{Accel, Config, Event, RunState, StateError};

use crate::common::*;

#[test]
fn a_guest_runs_and_posts_its_progress() {
    let _turn = turn();
    for accel in accels() {
        for cpus in [1, 2] {
            let vm = start(&config(accel, cpus));
            assert_eq!(vm.run_state(), RunState::Running);
            wait_writes(&vm, 10_000);
        }
    }
}

#[test]
fn nothing_is_written_in_a_pause() {
    let _turn = turn();
    for accel in accels() {
        let vm = start(&hurried(with_dma(config(accel, 2), true)));
        for _ in 0..20 {
            wait_writes(&vm, 50);
            let paused = vm.pause().unwrap();
            assert!(paused.was_running());
            assert_eq!(vm.run_state(), RunState::Paused);
            let (before, filled) = (writes(&vm), vm.dma_counters());
            let ram = vm.guest_ram();
            let copy = |block: usize| {
                let block = &ram.blocks()[block];
                let mut bytes = vec![0; block.used_bytes()];
                block.mapping().copy_out(0, &mut bytes);
                bytes
            };
            let bytes = copy(0);
            std::thread::yield_now();
            assert!(copy(0) == bytes, "RAM changed in a pause");
            assert_eq!((writes(&vm), vm.dma_counters()), (before, filled));
        }
        wait_writes(&vm, 50);
    }
}

#[test]
fn a_stopped_machine_stays_stopped_after_a_pause() {
    let _turn = turn();
    for accel in accels() {
        let vm = start(&config(accel, 1));
        let events = vm.subscribe();
        wait_writes(&vm, 1);
        vm.stop().unwrap();
        assert!(!vm.pause().unwrap().was_running());
        let before = writes(&vm);
        assert_eq!(vm.run_state(), RunState::Paused);
        assert_eq!(writes(&vm), before);
        vm.cont().unwrap();
        wait_writes(&vm, 1);
        assert_eq!(
            events.try_iter().collect::<Vec<_>>(),
            [Event::Stopped, Event::Resumed]
        );
    }
}

#[test]
fn staying_leaves_it_in_postmigrate_until_cont() {
    let _turn = turn();
    for accel in accels() {
        let vm = start(&config(accel, 1));
        wait_writes(&vm, 1);
        for why in [Stay::Stopped, Stay::MigratedAway, Stay::InDoubt] {
            vm.pause().unwrap().stay(why);
            assert_eq!(vm.run_state(), RunState::PostMigrate);
            assert_eq!(vm.stays(), Some(why));
            vm.cont().unwrap();
            assert_eq!(vm.stays(), None);
            wait_writes(&vm, 1);
        }
    }
}

#[test]
fn what_is_elsewhere_or_lost_never_runs_again() {
    let _turn = turn();
    for accel in accels() {
        for (why, error) in [
            (Stay::HandedOver, StateError::Gone),
            (Stay::Spoilt, StateError::Spoilt),
        ] {
            let vm = start(&config(accel, 1));
            wait_writes(&vm, 1);
            vm.pause().unwrap().stay(why);
            assert_eq!(vm.cont(), Err(error));
            assert_eq!(vm.run_state(), RunState::PostMigrate);
            assert!(vm.pause().is_err());
        }
    }
}

#[test]
fn a_pause_says_whether_the_machine_runs_on() {
    let _turn = turn();
    for accel in accels() {
        let vm = start(&config(accel, 1));
        wait_writes(&vm, 1);
        let mut paused = vm.pause().unwrap();
        paused.stay(Stay::InDoubt);
        paused.resume().unwrap();
        assert_eq!((vm.run_state(), vm.stays()), (RunState::Running, None));
        vm.stop().unwrap();
        vm.pause().unwrap().resume().unwrap();
        assert_eq!(vm.run_state(), RunState::Paused);
        vm.cont().unwrap();
        let paused = vm.pause().unwrap();
        vm.fail("a page is lost");
        let error = paused.resume().unwrap_err();
        assert_eq!(error.doing, "run on");
        assert_eq!(vm.run_state(), RunState::InternalError);
    }
}

#[test]
fn stop_and_cont_from_elsewhere_respect_a_held_pause() {
    let _turn = turn();
    for accel in accels() {
        let vm = start(&config(accel, 2));
        for round in 0..50 {
            let paused = vm.pause().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| vm.stop().unwrap());
                scope.spawn(|| vm.cont().unwrap());
            });
            let before = writes(&vm);
            assert_ne!(vm.run_state(), RunState::Running, "round {round}");
            std::thread::yield_now();
            assert_eq!(writes(&vm), before);
            drop(paused);
            vm.cont().unwrap();
            wait_writes(&vm, 1);
        }
    }
}

#[test]
fn a_failed_machine_stands_still_and_can_be_ended() {
    let _turn = turn();
    for accel in accels() {
        let vm = start(&config(accel, 2));
        wait_writes(&vm, 1);
        let paused = vm.pause().unwrap();
        vm.fail("a page is lost");
        drop(paused);
        assert_eq!(vm.run_state(), RunState::InternalError);
        assert!(matches!(vm.cont(), Err(StateError::Failed(_))));
        assert!(vm.pause().is_err());
        assert_eq!(vm.failure().as_deref(), Some("a page is lost"));
        vm.quit(paguro_vmm::ShutdownCause::HostQmpQuit);
        assert_eq!(
            vm.wait_ended().cause,
            paguro_vmm::ShutdownCause::HostQmpQuit
        );
    }
}

#[test]
fn a_machine_that_was_not_booted_does_not_run() {
    let vm = create(&config(Accel::Threads, 1));
    assert!(matches!(vm.cont(), Err(StateError::Load(_))));
    vm.boot().unwrap();
    assert!(vm.boot().is_err());
    assert_eq!(vm.run_state(), RunState::Prelaunch);
}

#[test]
fn every_writer_says_what_it_is() {
    let config = Config {
        unseen_writer: Some("vhost-user-net".to_owned()),
        ..with_dma(config(Accel::Threads, 2), true)
    };
    let writers = create(&config).writers();
    let writers: Vec<_> = writers.iter().map(|w| (w.name.as_str(), w.class)).collect();
    assert_eq!(
        writers,
        [
            ("vCPU 0", WriterClass::Seen),
            ("vCPU 1", WriterClass::Seen),
            ("x-dma", WriterClass::Seen),
            ("x-dma direct", WriterClass::Drained),
            ("vhost-user-net", WriterClass::Unseen),
        ]
    );
}

//! What fails is undone in one order, whichever part it fails in.

use std::io;
use std::sync::{Arc, Mutex};

use paguro_ram::{BlockConfig, GuestRam, RamBlock};
use paguro_sys::{Fallbacks, Host};
use paguro_wire::device::DeviceSection;
use paguro_wire::snapshot::extension::Facts;

use super::outlet::Outlet;
use super::picture::Picture;
use super::*;
use crate::Memory;
use crate::error::with_causes;
use crate::machine::{Board, MachineError, Paused, Stay, Writer};

/// Where something fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Where {
    Nowhere,
    Opening,
    Pausing,
    SavingDevices,
    LayingOut,
    Pages,
    Rest,
    Settling,
    Completing,
    /// So that nobody knows whether it was done.
    CompletingInDoubt,
}

/// What has happened so far.
type Log = Arc<Mutex<Vec<&'static str>>>;

/// A machine that runs nothing, tells when it would, and fails where it was told to.
struct Told {
    memory: Arc<Memory>,
    fails: Where,
    resumes: bool,
    log: Log,
}

impl Told {
    fn new(fails: Where) -> Self {
        let block = RamBlock::new(BlockConfig {
            id: "ram".to_owned(),
            guest_address: 0,
            bytes: 2 << 20,
            backing: paguro_ram::Backing::Anonymous,
            pages: paguro_ram::PageKind::Small,
        });
        let ram = GuestRam::new(vec![block.unwrap()]);
        ram.blocks()[0].mapping().copy_in(0, &[7]);
        Self {
            memory: Memory::new(Host::probe(&Fallbacks::default()), ram),
            fails,
            resumes: true,
            log: Log::default(),
        }
    }

    fn log(&self, what: &'static str) {
        // Nobody else begins before it is all undone.
        assert!(self.memory.is_busy(), "{what}");
        self.log.lock().unwrap().push(what);
    }

    fn fail(&self) -> MachineError {
        MachineError::new("go on", "it was told not to")
    }
}

impl Board for Told {
    fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    fn machine_name(&self) -> &str {
        "still"
    }
}

impl Machine for Told {
    fn writers(&self) -> Vec<Writer> {
        Vec::new()
    }

    fn pause(&self) -> Result<Box<dyn Paused + '_>, MachineError> {
        match self.fails {
            Where::Pausing => Err(self.fail()),
            _ => Ok(Box::new(Still {
                machine: self,
                ends: "it is let fall",
            })),
        }
    }
}

struct Still<'m> {
    machine: &'m Told,
    ends: &'static str,
}

impl Paused for Still<'_> {
    fn was_running(&self) -> bool {
        true
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, MachineError> {
        match self.machine.fails {
            Where::SavingDevices => Err(self.machine.fail()),
            _ => Ok(Vec::new()),
        }
    }

    fn resume(mut self: Box<Self>) -> Result<(), MachineError> {
        self.ends = "the guest runs on";
        if self.machine.resumes {
            Ok(())
        } else {
            Err(self.machine.fail())
        }
    }

    fn stay(&mut self, why: Stay) {
        self.ends = match why {
            Stay::Stopped => "the guest stays stopped",
            Stay::InDoubt => "the guest stays, in doubt",
            _ => "the guest stays for another reason",
        };
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.machine.log(self.ends);
    }
}

/// A way out that leads nowhere, and tells when it is gone.
struct Nowhere<'m>(&'m Told);

impl Nowhere<'_> {
    fn fails(&self, at: Where) -> Result<(), SnapshotError> {
        if self.0.fails == at {
            Err(self.0.fail().into())
        } else {
            Ok(())
        }
    }
}

impl Drop for Nowhere<'_> {
    fn drop(&mut self) {
        self.0.log("the way out is gone");
    }
}

impl Opened for Nowhere<'_> {
    type Outlet = Self;

    fn lay_out(self, _: Request<'_>, lengths: &[usize]) -> Result<Self, SnapshotError> {
        assert_eq!(lengths, [2 << 20]);
        self.fails(Where::LayingOut).map(|()| self)
    }
}

impl Outlet for Nowhere<'_> {
    fn save_pages(&mut self, picture: &Picture<'_>) -> Result<(), SnapshotError> {
        self.fails(Where::Pages)?;
        while let Some(copied) = picture.next_pages()? {
            picture.count(&copied, 1);
        }
        Ok(())
    }

    fn table_bytes(&self) -> usize {
        0
    }

    fn write_rest(&mut self, devices: &[DeviceSection], _: &Facts) -> Result<(), SnapshotError> {
        assert_eq!(devices.len(), 1, "that of the engine");
        self.fails(Where::Rest)
    }

    fn written_bytes(&self) -> u64 {
        4096
    }

    fn settle(&mut self, _: &Control) -> Result<(), SnapshotError> {
        self.fails(Where::Settling)
    }

    fn len_bytes(&self) -> u64 {
        8192
    }

    fn complete(self) -> Result<Option<String>, SnapshotError> {
        self.fails(Where::Completing)?;
        if self.0.fails == Where::CompletingInDoubt {
            return Err(SnapshotError::FileInDoubt {
                path: "x".into(),
                source: io::ErrorKind::TimedOut.into(),
            });
        }
        self.0.log("it is complete");
        Ok(Some("but for a doubt".to_owned()))
    }
}

/// What happens to a machine that is stopped for its snapshot, and what became of that.
fn taken(fails: Where) -> (Vec<&'static str>, Result<SnapshotReport, SnapshotError>) {
    taken_of(Told::new(fails))
}

fn taken_of(machine: Told) -> (Vec<&'static str>, Result<SnapshotReport, SnapshotError>) {
    let fails = machine.fails;
    let options = SnapshotOptions {
        background: false,
        ..SnapshotOptions::new()
    };
    let request = Request {
        machine: &machine,
        options: &options,
        control: &Control::default(),
    };
    let open = || match fails {
        Where::Opening => Err(machine.fail().into()),
        _ => Ok(Nowhere(&machine)),
    };
    let result = run(request, "x".into(), open);
    assert!(!machine.memory.is_busy());
    let log = machine.log.lock().unwrap().clone();
    (log, result)
}

#[test]
fn what_fails_is_undone_in_one_order() {
    let (gone, runs, stays) = (
        "the way out is gone",
        "the guest runs on",
        "the guest stays, in doubt",
    );
    let rows: [(Where, &[&str]); 9] = [
        (Where::Opening, &[]),
        // Nothing went through it yet, and the guest is not to wait.
        (Where::Pausing, &[gone]),
        (Where::SavingDevices, &[runs, gone]),
        // Before the guest runs on, nothing is left that could be loaded.
        (Where::LayingOut, &[gone, runs]),
        (Where::Pages, &[gone, runs]),
        (Where::Rest, &[gone, runs]),
        (Where::Settling, &[gone, runs]),
        (Where::Completing, &[gone, runs]),
        // It may be loaded.
        (Where::CompletingInDoubt, &[gone, stays]),
    ];
    for (fails, expected) in rows {
        let (log, result) = taken(fails);
        assert_eq!(log, expected, "{fails:?}");
        let in_doubt = result.unwrap_err().is_in_doubt();
        assert_eq!(in_doubt, fails == Where::CompletingInDoubt, "{fails:?}");
    }
}

#[test]
fn a_guest_that_does_not_run_on_is_told_with_what_led_to_it() {
    for fails in [Where::SavingDevices, Where::Pages, Where::Completing] {
        let mut machine = Told::new(fails);
        machine.resumes = false;
        let (log, result) = taken_of(machine);
        assert!(log.contains(&"the guest runs on"), "{fails:?}: {log:?}");
        let error = result.unwrap_err();
        let SnapshotError::NotResumed { failed, .. } = &error else {
            panic!("{fails:?}: {error}");
        };
        let (said, why) = (with_causes(&error), with_causes(failed));
        let stuck =
            "then the guest could not be resumed: the machine failed to go on: it was told not to";
        assert_eq!(said, format!("{why}; {stuck}"), "{fails:?}");
    }
}

#[test]
fn a_guest_that_is_saved_standing_stays_so() {
    let (log, result) = taken(Where::Nowhere);
    assert_eq!(
        log,
        [
            "it is complete",
            "the way out is gone",
            "the guest stays stopped"
        ]
    );
    let report = result.unwrap();
    assert_eq!(report.total_pages, report.normal_pages + report.zero_pages);
    assert_eq!(report.normal_pages, 1);
    assert_eq!((report.written_bytes, report.file_bytes), (4096, 8192));
    assert_eq!(report.warning.as_deref(), Some("but for a doubt"));
}

/// A cancel that comes when all but the name is there.
#[test]
fn a_cancel_counts_until_somebody_else_may_have_all() {
    let machine = Told::new(Where::Nowhere);
    let (options, control) = (SnapshotOptions::new(), Control::default());
    let request = Request {
        machine: &machine,
        options: &options,
        control: &control,
    };
    let facts = Facts {
        paguro_version: String::new(),
        taken_at_unix_s: 0,
        was_running: true,
        host_page_size_bytes: 4096,
    };
    control.cancel();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let file = PartialFile::create(&path, true).unwrap();
    let mut file = file.lay_out(request, &[2 << 20]).unwrap();
    assert!(file.table_bytes() > 0);
    file.write_rest(&[], &facts).unwrap();
    assert_eq!(file.table_bytes(), 0, "nobody needs them any more");
    let settled = file.settle(&control);
    assert!(matches!(settled, Err(SnapshotError::Cancelled)));
    drop(file);
    assert!(!path.exists());

    let address = Address::File {
        path: folder.path().join("stream"),
        offset: 0,
    };
    let ram = machine.memory.ram();
    let channel = channel::Options::new(channel::Stop::new().unwrap());
    let stream = StreamOutlet::open(&address, &channel, "still", ram).unwrap();
    let mut stream = stream.lay_out(request, &[2 << 20]).unwrap();
    stream.write_rest(&[], &facts).unwrap();
    stream.settle(&control).unwrap();
    assert_eq!(stream.complete().unwrap(), None);
    assert!(folder.path().join("stream").exists());
}

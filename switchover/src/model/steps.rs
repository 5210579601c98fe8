//! All that can happen next.

use super::world::{Back, End, Forth, Operator, Setting, World, id, stranger};
use crate::*;

/// One thing that can happen.
pub struct Step {
    pub what: String,
    /// It happens sooner or later, unless something else prevents it. The rest (losses, crashes,
    /// timeouts, an operator) may never happen.
    pub sure: bool,
    pub then: World,
}

struct Steps<'a> {
    from: &'a World,
    all: Vec<Step>,
}

impl Steps<'_> {
    fn add(&mut self, sure: bool, what: impl Into<String>, does: impl FnOnce(&mut World)) {
        let mut then = self.from.clone();
        does(&mut then);
        self.all.push(Step {
            what: what.into(),
            sure,
            then,
        });
    }

    fn sure(&mut self, what: impl Into<String>, does: impl FnOnce(&mut World)) {
        self.add(true, what, does);
    }

    fn maybe(&mut self, what: impl Into<String>, does: impl FnOnce(&mut World)) {
        self.add(false, what, does);
    }
}

/// All that can happen next.
pub fn steps(world: &World, setting: &Setting) -> Vec<Step> {
    let mut steps = Steps {
        from: world,
        all: Vec::new(),
    };
    if world.near.alive {
        source(&mut steps);
    }
    if world.far.alive {
        destination(&mut steps);
    }
    channel(&mut steps, setting);
    queries(&mut steps, setting);
    faults(&mut steps);
    operator(&mut steps, setting);
    steps.all
}

fn source(steps: &mut Steps<'_>) {
    let world = steps.from;
    match world.near.machine.state() {
        SourceState::Setup if world.near.end == End::Open => steps.sure("it is connected", |w| {
            w.send(Forth::Start);
            w.hand_source(SourceEvent::Ready);
        }),
        SourceState::Active => {
            steps.sure("it converged", |w| w.hand_source(SourceEvent::Converged))
        }
        SourceState::Permitted { eof: Eof::Writing } => {
            steps.maybe("what becomes of EOF takes too long", |w| {
                w.hand_source(SourceEvent::Overdue);
            });
        }
        SourceState::PreSwitchover => steps.sure("operator: migrate-continue", |w| {
            w.hand_source(SourceEvent::Continue);
        }),
        _ => {}
    }
    let Some(&event) = world.near.todo.first() else {
        return;
    };
    let next = |w: &mut World| {
        w.near.todo.remove(0);
    };
    match event {
        SourceEvent::Stopped => steps.sure("the source's guest is stopped", |w| {
            next(w);
            w.near.running = false;
            w.hand_source(SourceEvent::Stopped);
        }),
        SourceEvent::EofWritten => eof(steps),
        event => steps.sure(format!("source: {event:?}"), |w| {
            next(w);
            w.hand_source(event);
        }),
    }
}

/// EOF leaves, in part or as a whole or not at all; what became of it is known later.
fn eof(steps: &mut Steps<'_>) {
    let world = steps.from;
    let known = |w: &mut World, event| {
        w.near.todo.remove(0);
        w.hand_source(event);
    };
    let closed = world.near.end == End::Closed;
    if world.history.permitted {
        steps.add(!closed, "the source knows that EOF is written", |w| {
            known(w, SourceEvent::EofWritten);
        });
        steps.add(closed, "the source knows that EOF may have left", |w| {
            known(w, SourceEvent::EofTorn);
        });
        return;
    }
    if !closed {
        steps.sure("EOF leaves the source", |w| {
            w.history.permitted = true;
            w.send(Forth::Eof);
        });
    }
    if closed || world.cut || world.far.end == End::Closed {
        steps.add(closed, "EOF is withheld", |w| {
            known(w, SourceEvent::EofWithheld)
        });
    }
}

fn destination(steps: &mut Steps<'_>) {
    let Some(&event) = steps.from.far.todo.first() else {
        return;
    };
    match event {
        DestinationEvent::Loaded { .. } => {
            steps.sure("the destination is loaded", |w| {
                w.far.todo.remove(0);
                if matches!(w.far.machine.state(), DestinationState::Loading { .. }) {
                    w.far.whole = true;
                    w.history.loaded = true;
                }
                w.hand_destination(event);
            });
            steps.maybe("the destination cannot load", |w| {
                w.far.todo.remove(0);
                w.hand_destination(DestinationEvent::Failed(Reason::Here));
            });
        }
        _ => {
            steps.sure("the destination is started", |w| {
                w.far.todo.remove(0);
                w.hand_destination(DestinationEvent::Started);
            });
            steps.maybe("the destination does not start", |w| {
                w.far.todo.remove(0);
                w.far.running = false;
                w.hand_destination(DestinationEvent::NotStarted);
            });
        }
    }
}

fn channel(steps: &mut Steps<'_>, setting: &Setting) {
    let world = steps.from;
    let (near, far) = (&world.near, &world.far);
    if far.alive && far.end == End::Open {
        match world.forth.first() {
            Some(&bytes) => steps.sure(format!("destination reads {bytes:?}"), |w| {
                w.forth.remove(0);
                read(w, bytes, setting.stock);
            }),
            None if world.cut || near.end == End::Closed => {
                steps.sure("the destination notices that the channel is lost", |w| {
                    w.far.end = End::Lost;
                    w.hand_destination(DestinationEvent::Failed(Reason::Channel));
                });
            }
            None => {}
        }
        steps.maybe("the destination loses patience", |w| {
            w.far.end = End::Lost;
            w.hand_destination(DestinationEvent::Failed(Reason::Silence));
        });
    }
    if near.alive && near.end == End::Open {
        match world.back.first() {
            Some(&Back::Pong(value)) => steps.sure("source reads PONG", |w| {
                w.back.remove(0);
                w.hand_source(SourceEvent::Pong(value));
            }),
            Some(&Back::Shut(code)) => steps.sure(format!("source reads SHUT {code:#x}"), |w| {
                w.back.remove(0);
                w.hand_source(SourceEvent::Shut(code));
            }),
            None if world.cut || far.end == End::Closed => {
                steps.sure("the source notices that the channel is lost", |w| {
                    w.near.end = End::Lost;
                    w.hand_source(SourceEvent::Failed(Reason::Channel));
                });
            }
            None => {}
        }
        steps.maybe("the source loses patience", |w| {
            w.near.end = End::Lost;
            w.hand_source(SourceEvent::Failed(Reason::Silence));
        });
    }
    if !world.cut && (near.end == End::Open || far.end == End::Open) {
        for forth in 0..=world.forth.len() {
            for back in 0..=world.back.len() {
                steps.maybe(format!("cut: {forth} and {back} messages arrive"), |w| {
                    w.cut = true;
                    w.forth.truncate(forth);
                    w.back.truncate(back);
                });
            }
        }
    }
}

fn read(world: &mut World, bytes: Forth, stock: bool) {
    match bytes {
        Forth::Start => {
            world.hand_destination(DestinationEvent::Connected);
            for value in id().pings().into_iter().filter(|_| !stock) {
                world.hand_destination(DestinationEvent::Ping(value));
                // The source would ignore the PONGs.
                world.back.pop_if(|back| *back == Back::Pong(value));
            }
        }
        Forth::Ping(value) => world.hand_destination(DestinationEvent::Ping(value)),
        Forth::Eof => world.hand_destination(DestinationEvent::Eof),
        Forth::Forget => world.hand_destination(DestinationEvent::Forget),
    }
}

fn queries(steps: &mut Steps<'_>, setting: &Setting) {
    let world = steps.from;
    let mut waits = world.heard || world.answer.is_some();
    for (at, query) in world.flying.iter().copied().enumerate() {
        waits |= query.heard;
        let lands = |w: &mut World| {
            w.flying.remove(at);
            w.heard |= query.heard;
        };
        if world.far.alive {
            steps.sure(format!("destination hears {query:?}"), |w| {
                lands(w);
                w.hand_destination(DestinationEvent::Query(Query {
                    id: id(),
                    verb: query.verb,
                }));
            });
        }
        if query.heard {
            steps.maybe("another process answers in the destination's place", |w| {
                w.flying.remove(at);
                w.answer = Some(Answer::Unknown);
            });
        }
        steps.add(!world.far.alive, format!("{query:?} is lost"), |w| {
            w.flying.remove(at);
        });
    }
    if let Some(answer) = world.answer {
        steps.sure(format!("source hears {answer:?}"), |w| {
            w.answer = None;
            w.hand_source(SourceEvent::Answer(answer));
        });
        steps.maybe(format!("{answer:?} is lost"), |w| w.answer = None);
    }
    if world.heard {
        // The destination may be about to answer; its process may be no more.
        steps.maybe("the connection of the query is lost", |w| w.heard = false);
    }
    if world.near.alive {
        let (asking, idle) = match world.near.machine.state() {
            SourceState::InDoubt { asking, .. } => (asking, !asking),
            SourceState::Resumed { telling, .. } => {
                (telling == Telling::Asking, telling == Telling::Due)
            }
            _ => (false, false),
        };
        if asking && !waits {
            steps.sure("the source has no answer", |w| {
                w.hand_source(SourceEvent::NoAnswer)
            });
        }
        if idle && setting.source.reconnects && world.asks > 0 {
            steps.sure("the source tries again", |w| {
                w.hand_source(SourceEvent::Retry)
            });
        }
    }
    let listens = !matches!(world.far.machine.state(), DestinationState::Listening);
    if world.far.alive && listens && !world.stranger {
        for verb in [Verb::Run, Verb::Forget] {
            steps.maybe(format!("another migration's source says {verb:?}"), |w| {
                w.stranger = true;
                // What is refused, is refused to the stranger.
                let heard = std::mem::take(&mut w.heard);
                w.hand_destination(DestinationEvent::Query(Query {
                    id: stranger(),
                    verb,
                }));
                w.heard = heard;
            });
        }
    }
}

fn faults(steps: &mut Steps<'_>) {
    let world = steps.from;
    if world.near.alive {
        steps.maybe("the source crashes", World::crash_source);
        steps.maybe("the source's engine fails", |w| {
            w.hand_source(SourceEvent::Failed(Reason::Here));
        });
    }
    if world.far.alive {
        steps.maybe("the destination crashes", World::crash_destination);
        steps.maybe("the destination stops listening", |w| {
            w.hand_destination(DestinationEvent::LingerOver);
        });
    }
}

fn operator(steps: &mut Steps<'_>, setting: &Setting) {
    let world = steps.from;
    if world.near.alive {
        if !world.cancelled {
            steps.maybe("operator: migrate_cancel", |w| {
                w.cancelled = true;
                w.hand_source(SourceEvent::Cancel);
            });
        }
        if matches!(world.near.machine.state(), SourceState::InDoubt { .. }) && !world.continued {
            steps.maybe("operator: migrate-continue, in doubt", |w| {
                w.continued = true;
                w.hand_source(SourceEvent::Continue);
            });
        }
        steps.maybe("operator: quit, at the source", |w| {
            w.history.quit[0] = true;
            w.hand_source(SourceEvent::Quit);
        });
    }
    if world.far.alive {
        steps.maybe("operator: quit, at the destination", |w| {
            w.history.quit[1] = true;
            w.hand_destination(DestinationEvent::Quit);
        });
    }
    if world.near.alive && (setting.operator == Operator::Careless || cont_here(world, setting)) {
        steps.maybe("operator: cont, at the source", |w| {
            w.hand_source(SourceEvent::Cont)
        });
    }
    if world.far.alive && (setting.operator == Operator::Careless || cont_there(world, setting)) {
        steps.maybe("operator: cont, at the destination", |w| {
            w.hand_destination(DestinationEvent::Cont);
        });
    }
}

/// The destination can never run: it is no more, or has abandoned its copy.
fn cont_here(world: &World, setting: &Setting) -> bool {
    let never = !world.far.alive
        || matches!(
            world.far.machine.state(),
            DestinationState::Abandoned { .. }
        );
    setting.operator == Operator::Careful && never
}

/// The source does not run and does not start by itself: it is no more, or waits for our word; or
/// it said itself that the destination has the right to run.
fn cont_there(world: &World, setting: &Setting) -> bool {
    let never = !world.near.alive
        || matches!(
            world.near.machine.state(),
            SourceState::InDoubt { .. } | SourceState::Completed
        );
    setting.operator == Operator::Careful && never
}

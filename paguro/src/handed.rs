//! Waiting for RAM that another process on this host hands over: there is no machine before.
//!
//! Both doors are open before the control socket is bound: whoever can connect to that can send a
//! source here. It answers when RAM is here and a machine was made of it; only then is the source
//! told so, and goes on. Until then the guest runs at the source, whatever happens here.

use anyhow::{Result, bail};
use paguro_migration::channel::{Address, Incoming, Listener, Options, Stop};
use paguro_migration::handover::{self, Taken};

use crate::ending::Ending;
use crate::hints::Advised;
use crate::log;

/// Where a source is waited for.
pub struct Doors {
    /// For descriptors, if it is another one.
    cpr: Option<Listener>,
    main: Listener,
}

/// RAM that is here. Its source waits to be told so.
pub struct Handed {
    /// The RAM.
    pub taken: Taken,
    /// Where the rest comes in.
    pub main: Listener,
}

impl Doors {
    /// Opens them; from then on `ending` ends the wait.
    pub fn open(main: &Address, cpr: &Address, tls: bool, ending: &Ending) -> Result<Self> {
        if tls {
            bail!(Advised::error(
                "--mode cpr-transfer is not compatible with --tls-creds: no descriptor goes \
                 through TLS",
                "leave --tls-creds out: a hand-over does not leave this host",
            ));
        }
        let stop = Stop::new()?;
        ending.waits(&stop);
        let options = Options::new(stop.clone());
        let own = (main != cpr).then(|| Incoming::listen(cpr, &options));
        Ok(Self {
            cpr: own.transpose()?,
            main: Incoming::listen(main, &options)?,
        })
    }

    /// Waits until RAM is here; nothing if the process is asked to end before.
    pub fn wait(self, ending: &Ending) -> Result<Option<Handed>> {
        let door = self.cpr.as_ref().unwrap_or(&self.main);
        log::say(format_args!(
            "paguro: waiting for RAM to be handed over at {}; the control socket answers then",
            door.local_address()
        ));
        let accepted = door.accept(None).map_err(anyhow::Error::from);
        let taken = accepted.and_then(|channel| Ok(handover::take(channel)?));
        match taken {
            Ok(taken) => Ok(Some(Handed {
                taken,
                main: self.main,
            })),
            Err(_) if ending.asked() => Ok(None),
            Err(error) => Err(error.context("no RAM was handed over")),
        }
    }
}

//! `--incoming` and `--mode`: where a machine comes in, and whether its RAM is handed over.

use std::str::FromStr;

use clap::ValueEnum;
use paguro_migration::channel::Address;

use super::RunArgs;
use crate::qmp::address::{Kind, of_json};
use crate::run::Origin;

/// `--incoming`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IncomingArg {
    /// `migrate-incoming` says where from.
    Defer,
    /// From there.
    From(Address),
    /// Its RAM is handed over there.
    Cpr(Address),
}

impl FromStr for IncomingArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('{') {
            return match of_json(text).map_err(|error| error.desc)? {
                (Kind::Main, address) => Ok(Self::From(address)),
                (Kind::Cpr, address) => Ok(Self::Cpr(address)),
            };
        }
        match text {
            "defer" => Ok(Self::Defer),
            _ => text
                .parse()
                .map(Self::From)
                .map_err(|error| format!("{error}")),
        }
    }
}

/// `--mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// RAM is copied
    Normal,
    /// RAM, which is shared memory, is handed over by descriptor to a process on this host
    CprTransfer,
}

impl RunArgs {
    /// Where the machine comes from, or which options make no sense together.
    pub fn origin(&self) -> Result<Origin<'_>, String> {
        let (mut main, mut cpr) = (None, None);
        for from in &self.incoming {
            let (place, name) = match from {
                IncomingArg::Cpr(_) => (&mut cpr, "cpr"),
                _ => (&mut main, "main"),
            };
            if place.replace(from).is_some() {
                return Err(format!("--incoming names more than one {name} channel"));
            }
        }
        let hands_over = cpr.is_some() || self.mode == Some(ModeArg::CprTransfer);
        match (main, cpr) {
            (Some(IncomingArg::From(main)), None) if !hands_over => {
                Ok(Origin::Incoming(Some(main)))
            }
            (Some(_), None) if !hands_over => Ok(Origin::Incoming(None)),
            (Some(IncomingArg::From(main)), cpr) => self.hand_over(main, cpr),
            (Some(_), _) => Err(
                "--incoming defer is not compatible with a hand-over (--mode cpr-transfer, a \
                 channel of type cpr): the machine is made of RAM that comes before anything can \
                 be said over QMP"
                    .to_owned(),
            ),
            (None, Some(_)) => {
                Err("--incoming names a channel of type cpr and no main channel".to_owned())
            }
            (None, None) => Ok(match &self.restore {
                Some(path) => Origin::File(path),
                None => Origin::Boot,
            }),
        }
    }

    fn hand_over<'a>(
        &self,
        main: &'a Address,
        cpr: Option<&'a IncomingArg>,
    ) -> Result<Origin<'a>, String> {
        let cpr = match cpr {
            Some(IncomingArg::Cpr(address)) => address,
            _ => main,
        };
        if self.mode == Some(ModeArg::Normal) {
            return Err("--mode normal is not compatible with a channel of type cpr".to_owned());
        }
        if self.machine.multifd.multifd_channels.is_some() {
            return Err(
                "--multifd-channels is not compatible with a hand-over (cpr-transfer), which sends \
                 no pages"
                    .to_owned(),
            );
        }
        if !matches!(cpr, Address::Unix(_)) {
            return Err(format!(
                "{cpr}: RAM is handed over (cpr-transfer) through unix sockets only, unix:PATH"
            ));
        }
        match main {
            Address::Tcp { .. } | Address::Unix(_) | Address::Vsock { .. } => {
                Ok(Origin::HandOver { main, cpr })
            }
            _ => Err(format!(
                "{main}: after RAM was handed over (cpr-transfer) the source must get an answer: \
                 tcp, unix or vsock"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    const CPR: &str =
        r#"{"channel-type":"cpr","addr":{"transport":"socket","type":"unix","path":"/c"}}"#;

    #[test]
    fn incoming_is_an_address_or_put_off() {
        assert_eq!("defer".parse(), Ok(IncomingArg::Defer));
        let any = Address::Tcp {
            host: String::new(),
            port: 0,
        };
        assert_eq!("tcp::0".parse(), Ok(IncomingArg::From(any)));
        let cpr = IncomingArg::Cpr(Address::Unix("/c".into()));
        assert_eq!(CPR.parse(), Ok(cpr));
        let main = CPR.replace("\"cpr\"", "\"main\"");
        let from = IncomingArg::From(Address::Unix("/c".into()));
        assert_eq!(main.parse(), Ok(from));
        for text in ["defers", "{", "{}"] {
            assert!(text.parse::<IncomingArg>().is_err(), "{text}");
        }
    }

    fn origin(args: &[&str]) -> Result<String, String> {
        let all = ["paguro", "run"].iter().chain(args);
        let cli = Cli::try_parse_from(all).map_err(|error| error.to_string())?;
        let Command::Run(args) = &cli.command else {
            return Err("another command".to_owned());
        };
        args.origin().map(|origin| format!("{origin:?}"))
    }

    #[test]
    fn ram_is_handed_over_at_the_main_address_or_one_of_its_own() {
        let both = r#"HandOver { main: Unix("/m"), cpr: Unix("/m") }"#;
        let simple = ["--incoming", "unix:/m", "--mode", "cpr-transfer"];
        assert_eq!(origin(&simple).as_deref(), Ok(both));
        let own = r#"HandOver { main: Unix("/m"), cpr: Unix("/c") }"#;
        let two = ["--incoming", "unix:/m", "--incoming", CPR];
        assert_eq!(origin(&two).as_deref(), Ok(own));
        let normal = origin(&["--incoming", "unix:/m", "--mode", "normal"]);
        assert!(normal.unwrap().starts_with("Incoming("));
        for (args, expected) in [
            (&["--incoming", CPR][..], "no main channel"),
            (&["--incoming", "defer", "--incoming", CPR], "defer"),
            (&["--incoming", CPR, "--incoming", CPR], "more than one cpr"),
            (
                &["--incoming", "unix:/a", "--incoming", "unix:/b"],
                "more than one main",
            ),
            (
                &["--incoming", "tcp::0", "--mode", "cpr-transfer"],
                "unix sockets only",
            ),
            (&["--incoming", "exec:cat", "--incoming", CPR], "an answer"),
            (
                &[
                    "--incoming",
                    "unix:/m",
                    "--incoming",
                    CPR,
                    "--mode",
                    "normal",
                ],
                "--mode normal",
            ),
            (
                &[
                    "--incoming",
                    "unix:/m",
                    "--incoming",
                    CPR,
                    "--multifd-channels",
                    "2",
                ],
                "--multifd-channels",
            ),
            (&["--mode", "cpr-transfer"], "--incoming"),
        ] {
            let error = origin(args).unwrap_err();
            assert!(error.contains(expected), "{args:?}: {error}");
        }
    }
}

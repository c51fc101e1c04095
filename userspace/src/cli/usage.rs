//! Help and errors of clap: help unchanged, an error as one line.

use std::{error::Error as _, io::Write};

use clap::{
    CommandFactory,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{args::Cli, failure::Failure};

/// Prints help or version, or turns an error into its line.
pub(super) fn report(error: &clap::Error, out: &mut dyn Write) -> Result<u8, Failure> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            write!(out, "{}", error.render())?;
            Ok(0)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            // Standard error, since help was not asked for. If it is closed, the text is lost.
            let _ = write!(std::io::stderr(), "{}", help_of(&verb(&error.render().to_string())));
            Err(Failure::silent(2))
        }
        _ => Err(Failure::usage(line(error))),
    }
}

/// The error on one line.
fn line(error: &clap::Error) -> String {
    let argument = text(error, ContextKind::InvalidArg);
    let value = text(error, ContextKind::InvalidValue);
    match (error.kind(), argument, value) {
        (ErrorKind::ValueValidation, Some(argument), _) if error.source().is_some() => {
            let why = error.source().map(ToString::to_string).unwrap_or_default();
            format!("{}: {why}", option_name(&argument))
        }
        (ErrorKind::InvalidValue, Some(argument), Some(value)) => {
            let name = option_name(&argument);
            match (value.as_str(), text(error, ContextKind::ValidValue)) {
                ("", _) => {
                    format!("{name}: its value is missing: {}", hint(error))
                }
                (_, Some(valid)) => format!("{name}: '{value}' is unknown: {valid} is valid"),
                (_, None) => format!("{name}: '{value}' is unknown: {}", hint(error)),
            }
        }
        (ErrorKind::MissingRequiredArgument, Some(missing), _) => {
            format!("missing on the command line: {missing}: {}", hint(error))
        }
        _ => {
            let rendered = error.render().to_string();
            let paragraph = rendered.split("\n\n").next().unwrap_or_default();
            let words: Vec<_> = paragraph.split_whitespace().collect();
            let what = words.join(" ");
            let what = what.strip_prefix("error: ").unwrap_or(&what);
            format!("{what}: {}", hint(error))
        }
    }
}

/// The valid usage.
fn hint(error: &clap::Error) -> String {
    let similar = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand]
        .iter()
        .find_map(|kind| text(error, *kind));
    if let Some(similar) = similar {
        return format!("did you mean '{similar}'?");
    }
    format!("see '{} --help'", verb(&error.render().to_string()).join(" "))
}

/// The verb in clap's usage line: "Usage: culvert network create [OPTIONS] <NAME>".
fn verb(rendered: &str) -> Vec<&str> {
    rendered
        .lines()
        .find_map(|line| line.strip_prefix("Usage: "))
        .unwrap_or("culvert")
        .split_whitespace()
        .take_while(|word| !word.starts_with(['[', '<', '-', '(']) && *word != "...")
        .collect()
}

/// The help of a verb.
fn help_of(verb: &[&str]) -> clap::builder::StyledStr {
    let mut command = Cli::command();
    // The verbs get global options and full names only when the command is built.
    command.build();
    let found = verb
        .iter()
        .skip(1)
        .try_fold(&command, |command, name| command.find_subcommand(name))
        .unwrap_or(&command);
    found.clone().render_help()
}

/// `--subnet <CIDR>` → `--subnet`, `<NAME>...` → `NAME`.
fn option_name(argument: &str) -> String {
    let first = argument.split([' ', '=']).next().unwrap_or(argument);
    first.trim_end_matches("...").trim_matches(['<', '>', '[', ']']).to_owned()
}

fn text(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => match texts.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            // Alternatives as "a, b or c"; all other lists as "a, b, c".
            [first @ .., last] if kind == ContextKind::ValidValue => {
                Some(format!("{} or {last}", first.join(", ")))
            }
            all => Some(all.join(", ")),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(args: &str) -> String {
        let error = Cli::command()
            .try_get_matches_from(args.split_whitespace())
            .expect_err("this usage is wrong");
        let failure = report(&error, &mut Vec::new()).expect_err("wrong usage is a failure");
        assert_eq!(failure.code, 2);
        let line = failure.line.expect("wrong usage says why");
        assert_eq!(line.lines().count(), 1, "{line}");
        line
    }

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_wrong_usage_is_one_line() {
        let lines: Vec<_> = [
            "culvert frobnicate",
            "culvert netwrok ls",
            "culvert --format yaml ps",
            "culvert ps --frobnicate",
            "culvert ps extra",
            "culvert network create",
            "culvert network create a/b",
            "culvert network create x --subnet 10.0.0.1/24",
            "culvert network create x --subnet 10.0.0.0/33",
            "culvert network create x --subnet",
            "culvert network create x --subnets 10.0.0.0/24",
            "culvert network create x -d macvlan",
            "culvert network create x --gateway here",
            "culvert network create x --gateway 10.0.0.1 --gateway 10.0.0.2",
            "culvert network create x --vni -1",
            "culvert network create x --vni 4294967296",
            "culvert network create x --mtu -1",
            "culvert network create x --opt key",
            "culvert network create x x",
            "culvert run --name a",
            "culvert run --network a -- true",
            "culvert run --name a --network container: -- true",
            "culvert run --name a --mac 01:00:5e:00:00:01 -- true",
            "culvert run --name a --ip 10.0.0.300 -- true",
            "culvert run --name a -p x -- true",
            "culvert run --name a -p 80:0 -- true",
            "culvert run --name a -p 65536:80 -- true",
            "culvert run --name a -p 8000-8010:8000-8009 -- true",
            "culvert run --name a -p 8000-8010:80 -- true",
            "culvert run --name a -p 8010-8000:8000-8010 -- true",
            "culvert run --name a -p 80:80/sctp -- true",
            "culvert run --name a -p [::1]:80:80 -- true",
            "culvert run --name a -p localhost:80:80 -- true",
            "culvert run --name a --name b -- true",
            "culvert run --name a --hostname a/b -- true",
            "culvert run --name a --dns here -- true",
            "culvert run --name a --dns-search a..b -- true",
            "culvert run --name a --dns-option a=b -- true",
            "culvert run --name a --add-host db -- true",
            "culvert run --name a --add-host db:here -- true",
            "culvert run --name a -d --restart often -- true",
            "culvert run --name a -d --restart on-failure:x -- true",
            "culvert run --name a --from 192.0.2.0/24 -- true",
            "culvert run --name a -p 80 --from any -- true",
            "culvert run --name a --user a: -- true",
            "culvert run --name a --cap-drop NET-RAW -- true",
            "culvert run --name a --cap-add NET_RAW -- true",
            "culvert run --name a --pid container:b -- true",
            "culvert run --name a --ipc shareable -- true",
            "culvert run --name a --tmpfs tmp -- true",
            "culvert run --name a --tmpfs /proc/x -- true",
            "culvert run --name a --tmpfs /tmp:size=big -- true",
            "culvert ports deny",
            "culvert ports deny host",
            "culvert ports deny 192.0.2.7/24",
            "culvert ports allow 192.0.2.0/33",
            "culvert attach --name a --network n",
            "culvert attach --name a --network n --pid 1 --netns /x",
            "culvert attach --name a --network n --pid 0",
            "culvert attach --name a --network n --netns /proc/self/ns/net",
            "culvert attach --name a --network n --pid 1 --ifname a:b",
            "culvert exec",
            "culvert exec a",
            "culvert rm",
            "culvert vtep add fe80::1 --network n",
            "culvert vtep add 10.0.0.1",
            "culvert agent --store redis://x",
            "culvert agent --store-cert x",
            "culvert agent --store-user x",
            "culvert agent --vxlan-port 0",
            "culvert agent --datapath dpdk",
            "culvert agent --ageing 0",
            "culvert agent --log =,=",
            "culvert agent --node a/b",
            "culvert agent --conntrack-max 63",
            "culvert agent --conntrack-max many",
            "culvert agent --conntrack-timeout tcp-established",
            "culvert agent --conntrack-timeout tcp-open=5",
            "culvert agent --conntrack-timeout udp-stream=0",
            "culvert agent --nat-ports 0-1000",
            "culvert agent --nat-ports 2000-1000",
            "culvert agent --nat-ports 1024",
            "culvert nat ls --protocol sctp",
            "culvert nat ls --address fd00::1",
            "culvert nat ls --container a/b",
            "culvert completion tcl",
        ]
        .iter()
        .map(|args| format!("{args}\n    {}", refused(args)))
        .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}

//! Licences and sources of the dependencies, against the list in `deny.toml`.

use anyhow::{Result, bail};

use super::metadata::{self, text};
use crate::{files, paths};

/// Checks every dependency and returns how many there are.
pub(super) fn check() -> Result<usize> {
    let file = paths::root().join("deny.toml");
    let allowed = allowed(&files::read(&file)?);
    if allowed.is_empty() {
        bail!("{}: no 'allow' under [licenses]", file.display());
    }
    let mut problems = Vec::new();
    let mut count = 0;
    for package in metadata::packages(false)? {
        let source = text(&package, "source");
        if source.is_empty() {
            // A package of this repository.
            continue;
        }
        count += 1;
        let name = format!("{} {}", text(&package, "name"), text(&package, "version"));
        if !source.starts_with("registry+") {
            problems.push(format!("{name}: comes from {source}, not from a registry"));
        }
        let licence = text(&package, "license");
        match permits(licence, &allowed) {
            Some(true) => {}
            Some(false) => problems.push(format!("{name}: licence '{licence}' is not allowed")),
            None => problems.push(format!("{name}: licence '{licence}' cannot be read")),
        }
    }
    if !problems.is_empty() {
        bail!("{}: see deny.toml", problems.join("; "));
    }
    Ok(count)
}

/// The strings of `allow` under `[licenses]`.
fn allowed(rules: &str) -> Vec<String> {
    rules
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .skip_while(|line| *line != "[licenses]")
        .skip_while(|line| !line.starts_with("allow"))
        .take_while(|line| *line != "]")
        .flat_map(|line| line.split('"').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

/// Whether the SPDX expression `licence` can be met with `allowed` alone; `None` if it is not an
/// SPDX expression. Older packages write `A/B` for `A OR B`.
fn permits(licence: &str, allowed: &[String]) -> Option<bool> {
    let spaced = licence.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let value = any_of(&mut words, allowed)?;
    words.next().is_none().then_some(value)
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allowed: &[String]) -> Option<bool> {
    let mut value = all_of(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        value |= all_of(words, allowed)?;
    }
    Some(value)
}

fn all_of(words: &mut Words<'_>, allowed: &[String]) -> Option<bool> {
    let mut value = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        value &= one(words, allowed)?;
    }
    Some(value)
}

fn one(words: &mut Words<'_>, allowed: &[String]) -> Option<bool> {
    let word = words.next()?;
    if word == "(" {
        let value = any_of(words, allowed)?;
        return (words.next()? == ")").then_some(value);
    }
    if matches!(word, ")" | "AND" | "OR" | "WITH") {
        return None;
    }
    let name = match words.next_if_eq(&"WITH") {
        Some(_) => format!("{word} WITH {}", words.next()?),
        None => word.to_owned(),
    };
    Some(allowed.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mit_and_apache() -> Vec<String> {
        allowed(
            "[bans]\nallow = [\"x\"]\n[licenses]\nallow = [\n  \"MIT\", # why\n  \"Apache-2.0\",\n]\nother = [\"GPL-3.0\"]\n",
        )
    }

    #[test]
    fn the_list_is_that_under_licenses() {
        assert_eq!(mit_and_apache(), ["MIT", "Apache-2.0"]);
    }

    #[test]
    fn expressions_are_weighed() {
        let allowed = mit_and_apache();
        for (licence, expected) in [
            ("MIT", Some(true)),
            ("MIT OR GPL-3.0", Some(true)),
            ("MIT/GPL-3.0", Some(true)),
            ("MIT AND GPL-3.0", Some(false)),
            ("(MIT OR GPL-3.0) AND Apache-2.0", Some(true)),
            ("Apache-2.0 WITH LLVM-exception", Some(false)),
            ("GPL-3.0", Some(false)),
            ("", None),
            ("MIT OR", None),
            ("(MIT", None),
            ("MIT Apache-2.0", None),
        ] {
            assert_eq!(permits(licence, &allowed), expected, "{licence}");
        }
    }
}

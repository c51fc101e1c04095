//! Removes each check of the data plane in turn, and runs the tests of the programs without it. A
//! check that no test misses is not tested.
//!
//! Only the BPF programs are compiled again, from a copy of the sources. The test program takes
//! them from the file that `CULVERT_TEST_OBJECT` names.

mod find;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use culvert_bpf_build::{BuildError, build_programs};

use self::find::{Mutant, mutants, one_line};
use super::command::programs;
use super::tally::{SILENCE, Tally};
use crate::{files, paths, process, ui};

/// Name of the stage.
pub(super) const NAME: &str = "mutants";

/// Folders of the sources of the data plane, from the root of the repository.
const SOURCES: [&str; 3] = ["ebpf/src", "common/src/datapath", "common/src/wire"];

/// Checks that no test can miss, with reasons.
const EXCEPTIONS: &str = "tests/mutants.txt";

/// Variable with the path of the object that the tests load.
const OBJECT: &str = "CULVERT_TEST_OBJECT";

/// What the tests print if the kernel does not load the object.
const REFUSED: &str = "the kernel refuses the programs";

/// The tests that find a removed check: those of the programs.
const PROGRAM: &str = "prog_run";

/// The least share of removed checks that a test misses, in per cent.
const LEAST: usize = 95;

/// Number of removed checks between two lines that say how long the rest takes.
const REPORT: usize = 20;

/// A part of the checks: each part has some of every file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shard {
    /// Number of the part, from 1.
    index: usize,
    /// Number of parts.
    count: usize,
}

impl Default for Shard {
    /// All checks.
    fn default() -> Self {
        Self { index: 1, count: 1 }
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(index, count)| {
            let (index, count) = (index.parse::<usize>().ok()?, count.parse().ok()?);
            (1..=count).contains(&index).then_some(Self { index, count })
        });
        numbers
            .ok_or_else(|| "not INDEX/COUNT with INDEX from 1 to COUNT, such as '1/4'".to_owned())
    }
}

impl Shard {
    /// The checks of this part.
    fn of(self, all: Vec<Mutant>) -> Vec<Mutant> {
        all.into_iter().skip(self.index - 1).step_by(self.count).collect()
    }
}

/// The result of a run without a check.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trial {
    /// All tests passed.
    Unnoticed,
    /// A test failed: its line.
    Noticed(String),
    /// The verifier refuses the programs: the check keeps them within their memory. No test has
    /// shown what it does, so it counts neither as tested nor as not tested.
    Refused,
    /// The compiler or the linker refuses the programs.
    NotBuilt,
    /// The check is one of the exceptions.
    Excepted,
}

impl Trial {
    fn text(&self) -> String {
        match self {
            Self::Unnoticed => ui::red("NO TEST FAILS"),
            Self::Noticed(line) => line.clone(),
            Self::Refused => "the verifier refuses the programs".to_owned(),
            Self::NotBuilt => "cannot be built".to_owned(),
            Self::Excepted => format!("an exception of {EXCEPTIONS}"),
        }
    }
}

/// Removes each check of a part in turn.
///
/// # Errors
///
/// Too many removed checks make no test fail; the tests fail with every check; a source cannot be
/// read, copied or compiled.
pub(super) fn main(tally: &mut Tally, shard: Shard) -> Result<()> {
    let root = paths::root();
    let all = all(&root)?;
    let exceptions = read_exceptions(&root, &all)?;
    let number = all.len();
    let mutants = shard.of(all);
    ui::line(&format!("{} of {number} checks are removed", mutants.len()));
    let program = programs(&[PROGRAM])?.into_iter().next().context("no test program")?;
    let copy = Sources::make(&root)?;
    match trial(&program, &copy.build()?)? {
        Trial::Unnoticed => {}
        other => bail!("{}: although every check is there", other.text()),
    }
    let mut trials = Vec::new();
    let begun = Instant::now();
    for (number, mutant) in mutants.iter().enumerate() {
        crate::signals::check()?;
        if number > 0 && number.is_multiple_of(REPORT) {
            let each = begun.elapsed().as_secs_f64() / number as f64;
            let minutes = each * (mutants.len() - number) as f64 / 60.0;
            ui::line(&format!("{each:.0} s for each check, {minutes:.0} min for the rest"));
        }
        let trial = if exceptions.contains_key(&key(mutant)) {
            Trial::Excepted
        } else {
            let object = copy.without(mutant)?;
            object.map_or(Ok(Trial::NotBuilt), |object| trial(&program, &object))?
        };
        let Mutant { file, line, function, condition, .. } = mutant;
        ui::line(&format!(
            "{}/{} {file}:{line} {function}: {condition} is {}: {}",
            number + 1,
            mutants.len(),
            mutant.value(),
            trial.text()
        ));
        trials.push(trial);
    }
    let judged = judge(&mutants, &trials);
    tally.passed += u64::from(judged.is_ok());
    tally.failed += u64::from(judged.is_err());
    judged
}

/// Prints the sums, and fails if the share of noticed mutants is too small.
fn judge(mutants: &[Mutant], trials: &[Trial]) -> Result<()> {
    let count = |wanted: fn(&Trial) -> bool| trials.iter().filter(|trial| wanted(trial)).count();
    let noticed = count(|trial| matches!(trial, Trial::Noticed(_)));
    let refused = count(|trial| *trial == Trial::Refused);
    let unnoticed = count(|trial| *trial == Trial::Unnoticed);
    let not_built = count(|trial| *trial == Trial::NotBuilt);
    let excepted = count(|trial| *trial == Trial::Excepted);
    ui::line(&format!(
        "{noticed} removed checks made a test fail; {unnoticed} made no test fail; the verifier \
         refused {refused}, {not_built} could not be built, {excepted} are exceptions"
    ));
    for (mutant, _) in mutants.iter().zip(trials).filter(|(_, trial)| **trial == Trial::Unnoticed) {
        let Mutant { file, line, condition, .. } = mutant;
        ui::line(&format!("not tested: {file}:{line} {condition} is {}", mutant.value()));
    }
    let all = noticed + unnoticed;
    if all == 0 || noticed * 100 < all * LEAST {
        bail!("{noticed} of {all} removed checks make a test fail: at least {LEAST} % must");
    }
    Ok(())
}

/// All checks, in the order of files and lines. The sources of tests have none.
fn all(root: &Path) -> Result<Vec<Mutant>> {
    let mut all = Vec::new();
    for folder in SOURCES {
        let sources = files::below(&root.join(folder), &|dir| !dir.ends_with("tests"))?;
        for path in sources {
            let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
            if files::is_rust(&path) && !path.ends_with("tests.rs") {
                all.extend(mutants(&name, &files::read(&path)?)?);
            }
        }
    }
    Ok(all)
}

/// What an exception names: file and condition.
type Key = (String, String);

fn key(mutant: &Mutant) -> Key {
    (mutant.file.clone(), mutant.condition.clone())
}

/// Reads the exceptions, and checks that each names a check.
fn read_exceptions(root: &Path, mutants: &[Mutant]) -> Result<BTreeMap<Key, String>> {
    let exceptions = parse_exceptions(&files::read(&root.join(EXCEPTIONS))?)?;
    for (file, condition) in exceptions.keys() {
        if !mutants.iter().any(|it| it.file == *file && it.condition == *condition) {
            bail!("{EXCEPTIONS}: {file} has no check '{condition}': remove the exception");
        }
    }
    Ok(exceptions)
}

/// Reads exceptions: a line `FILE: CONDITION`, and below it indented lines with the reason. Empty
/// lines and lines that begin with `#` mean nothing.
fn parse_exceptions(text: &str) -> Result<BTreeMap<Key, String>> {
    let mut all: BTreeMap<Key, String> = BTreeMap::new();
    let mut last = None;
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with(' ') {
            let reason = last.as_ref().and_then(|key| all.get_mut(key));
            let reason =
                reason.with_context(|| format!("{EXCEPTIONS}:{}: of what?", number + 1))?;
            if !reason.is_empty() {
                reason.push(' ');
            }
            reason.push_str(line.trim());
            continue;
        }
        let (file, condition) = line
            .split_once(": ")
            .with_context(|| format!("{EXCEPTIONS}:{}: not 'FILE: CONDITION'", number + 1))?;
        let key = (file.to_owned(), one_line(condition));
        all.insert(key.clone(), String::new());
        last = Some(key);
    }
    if let Some(((file, condition), _)) = all.iter().find(|(_, reason)| reason.is_empty()) {
        bail!("{EXCEPTIONS}: {file}: {condition}: has no reason: indent it below the line");
    }
    Ok(all)
}

/// A copy of the repository, in which checks are removed.
#[derive(Debug)]
struct Sources {
    root: PathBuf,
    target: PathBuf,
}

impl Sources {
    /// Copies the repository without its build output and history.
    fn make(root: &Path) -> Result<Self> {
        let copy =
            Self { root: paths::mutants().join("source"), target: paths::mutants().join("bpf") };
        if copy.root.exists() {
            fs::remove_dir_all(&copy.root)
                .with_context(|| format!("{}: cannot be removed", copy.root.display()))?;
        }
        copy_tree(root, &copy.root)?;
        Ok(copy)
    }

    /// Builds the object.
    fn build(&self) -> Result<PathBuf> {
        Ok(build_programs(&self.root, &self.target)?)
    }

    /// Builds the object without a check. `None`: the compiler or the linker refuses it.
    fn without(&self, mutant: &Mutant) -> Result<Option<PathBuf>> {
        let path = self.root.join(&mutant.file);
        let text = files::read(&path)?;
        let write = |text: &str| {
            fs::write(&path, text).with_context(|| format!("{}: cannot be written", path.display()))
        };
        write(&mutant.apply(&text))?;
        let built = build_programs(&self.root, &self.target);
        write(&text)?;
        crate::signals::check()?;
        match built {
            Ok(object) => Ok(Some(object)),
            Err(BuildError::Failed(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Copies a directory without build output and without files whose names begin with a dot, except
/// for cargo's settings.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("{}: cannot be made", to.display()))?;
    let entries =
        fs::read_dir(from).with_context(|| format!("{}: cannot be read", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == "target" || (name.starts_with('.') && name != ".cargo") {
            continue;
        }
        let (source, target) = (entry.path(), to.join(&*name));
        if entry.file_type()?.is_dir() {
            copy_tree(&source, &target)?;
        } else {
            fs::copy(&source, &target)
                .with_context(|| format!("{}: cannot be copied", source.display()))?;
        }
    }
    Ok(())
}

/// Runs the tests of the programs with `object`, until one fails.
fn trial(program: &Path, object: &Path) -> Result<Trial> {
    let mut command = Command::new(program);
    command
        .current_dir(paths::root().join("tests"))
        .env(OBJECT, object)
        // Messages of panics are shown when they happen, so that a refusal of the verifier is seen.
        .args(["--include-ignored", "--nocapture", "--color", "never"]);
    let mut seen = Trial::Unnoticed;
    let status = process::lines_until(&mut command, Some(SILENCE), |line| {
        match outcome(line) {
            Some(trial) => seen = trial,
            None => return ControlFlow::Continue(()),
        }
        ControlFlow::Break(())
    });
    crate::signals::check()?;
    Ok(match status {
        Ok(Some(status)) if !status.success() => Trial::Noticed(format!("{PROGRAM}: {status}")),
        Ok(_) => seen,
        // The tests wait for a packet that does not come.
        Err(error) => Trial::Noticed(format!("{error:#}")),
    })
}

/// What a line of the tests' output says about the removed check.
fn outcome(line: &str) -> Option<Trial> {
    if line.contains(REFUSED) {
        return Some(Trial::Refused);
    }
    let failed = line.trim().strip_suffix("FAILED")?;
    // `test result: FAILED. …` has another end.
    Some(Trial::Noticed(failed.trim_end_matches([' ', '.']).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_plane_has_checks_and_the_exceptions_are_of_them() {
        let root = paths::root();
        let mutants = all(&root).expect("the sources are readable");
        assert!(mutants.len() > 100, "{} checks", mutants.len());
        for folder in SOURCES {
            assert!(mutants.iter().any(|it| it.file.starts_with(folder)), "no check in {folder}");
        }
        read_exceptions(&root, &mutants).expect("each names a check");
    }

    #[test]
    fn exceptions_have_reasons() {
        let text = "# about\n\na/b.rs: x == 0 || y\n    One line,\n    and another.\n";
        let all = parse_exceptions(text).expect("it is right");
        let key = ("a/b.rs".to_owned(), "x == 0 || y".to_owned());
        assert_eq!(all.get(&key).map(String::as_str), Some("One line, and another."));
        for wrong in ["a/b.rs: x\n", "  why\n", "a/b.rs\n  why\n"] {
            assert!(parse_exceptions(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn all_parts_are_all_checks() {
        let all = all(&paths::root()).expect("the sources are readable");
        let mut parts = Vec::new();
        for text in ["1/3", "2/3", "3/3"] {
            let part = text.parse::<Shard>().expect("it is right").of(all.clone());
            assert!(part.len() >= all.len() / 3, "{text}");
            parts.extend(part);
        }
        assert_eq!(parts.len(), all.len());
        assert!(all.iter().all(|it| parts.contains(it)));
        assert_eq!(Shard::default().of(all.clone()), all);
        for wrong in ["", "1", "0/3", "4/3", "1/0", "a/b", "1/3/5", "-1/3"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn failures_and_refusals_are_seen() {
        assert_eq!(
            outcome("test arp::case::a ... FAILED"),
            Some(Trial::Noticed("test arp::case::a".to_owned()))
        );
        assert_eq!(outcome("test arp::case::a ... ok"), None);
        assert_eq!(outcome("test result: FAILED. 1 passed; 1 failed"), None);
        assert_eq!(outcome(&format!("{REFUSED}: program from_host")), Some(Trial::Refused));
    }

    #[test]
    fn too_many_untested_checks_are_a_failure() {
        let noticed = |number: usize| vec![Trial::Noticed(String::new()); number];
        assert!(judge(&[], &noticed(20)).is_ok());
        assert!(judge(&[], &[noticed(19), vec![Trial::Unnoticed]].concat()).is_ok());
        assert!(judge(&[], &[noticed(18), vec![Trial::Unnoticed]].concat()).is_err());
        assert!(judge(&[], &[noticed(19), vec![Trial::Excepted; 9]].concat()).is_ok());
        // A refusal of the verifier is no failed test.
        let refused = vec![Trial::Refused; 50];
        assert!(judge(&[], &[noticed(19), refused.clone()].concat()).is_ok());
        let untested = [noticed(18), vec![Trial::Unnoticed], refused.clone()].concat();
        assert!(judge(&[], &untested).is_err());
        assert!(judge(&[], &refused).is_err());
        assert!(judge(&[], &[]).is_err());
    }
}

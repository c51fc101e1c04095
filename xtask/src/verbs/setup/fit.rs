//! Packages of one source whose versions have to be equal. Debian builds several packages from one
//! source, and some of them can only be installed in one version. If a package from another suite
//! (backports) is installed, apt would have to remove it for a new package of its source.

use std::process::{Command, Stdio};

/// A choice of versions that makes two packages of one source fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// `package` is installed in the version of the installed package `beside`.
    Choose { package: String, version: String, beside: String },
    /// The package `installed` is replaced by the version of the new package `beside`.
    Replace { installed: String, from: String, to: String, beside: String },
}

impl Fit {
    /// The argument of `apt-get install` for this choice.
    pub(super) fn argument(&self) -> String {
        match self {
            Self::Choose { package, version, .. } => format!("{package}={version}"),
            Self::Replace { installed, to, .. } => format!("{installed}={to}"),
        }
    }

    /// The action and its reason, in a line.
    pub(super) fn line(&self) -> String {
        match self {
            Self::Choose { package, version, beside } => {
                format!("{package}: version {version}, which is that of the installed {beside}")
            }
            Self::Replace { installed, from, to, beside } => format!(
                "{installed}: version {from} is replaced by {to}, which is that of {beside}: both \
                 are of one source, and only go together in one version"
            ),
        }
    }
}

/// Every choice that gives `package` and an installed package of its source the same version.
pub(super) fn of(package: &str) -> Vec<Fit> {
    let policy = Policy::of(package);
    let Some(source) = source_of(package) else { return Vec::new() };
    let installed = said(Command::new("dpkg-query").args([
        "-W",
        "-f",
        "${db:Status-Abbrev} ${source:Package} ${Package} ${Version}\\n",
    ]));
    installed_of(&installed, &source)
        .into_iter()
        .flat_map(|(name, version)| fits(package, &policy, &name, &version, &Policy::of(&name)))
        .collect()
}

/// The choices that give `package` and the package `installed` of its source the same version.
fn fits(
    package: &str,
    policy: &Policy,
    installed: &str,
    version: &str,
    versions: &Policy,
) -> Vec<Fit> {
    let Some(candidate) = policy.candidate.as_deref() else { return Vec::new() };
    if installed == package || version == candidate {
        return Vec::new();
    }
    let knows = |policy: &Policy, version: &str| policy.versions.iter().any(|it| it == version);
    let choose = knows(policy, version).then(|| Fit::Choose {
        package: package.to_owned(),
        version: version.to_owned(),
        beside: installed.to_owned(),
    });
    let replace = knows(versions, candidate).then(|| Fit::Replace {
        installed: installed.to_owned(),
        from: version.to_owned(),
        to: candidate.to_owned(),
        beside: package.to_owned(),
    });
    choose.into_iter().chain(replace).collect()
}

/// Versions of a package that apt knows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Policy {
    /// The version that apt would install.
    pub(super) candidate: Option<String>,
    /// Every version in apt's lists, and the installed version.
    versions: Vec<String>,
}

impl Policy {
    /// Asks `apt-cache`.
    pub(super) fn of(package: &str) -> Self {
        Self::parse(&said(Command::new("apt-cache").args(["policy", package])))
    }

    fn parse(text: &str) -> Self {
        let candidate = text.lines().find_map(|line| line.trim().strip_prefix("Candidate:"));
        let candidate = candidate.map(str::trim).filter(|version| *version != "(none)");
        // Each version is followed by its priority, and by a line for each place that has it.
        let table = text.lines().skip_while(|line| line.trim() != "Version table:").skip(1);
        let versions = table.filter_map(|line| {
            let mut words = line.trim_start_matches([' ', '*']).split_whitespace();
            let version = words.next()?;
            words.next()?.parse::<i32>().ok()?;
            words.next().is_none().then(|| version.to_owned())
        });
        Self { candidate: candidate.map(str::to_owned), versions: versions.collect() }
    }
}

/// The source that `package` is built from.
fn source_of(package: &str) -> Option<String> {
    let shown = said(Command::new("apt-cache").args(["show", "--no-all-versions", package]));
    let field = |name: &str| shown.lines().find_map(|line| line.strip_prefix(name));
    let source = field("Source:").or_else(|| field("Package:"))?;
    source.split_whitespace().next().map(str::to_owned)
}

/// Names and versions of the installed packages of `source`, from dpkg-query's lines.
fn installed_of(lines: &str, source: &str) -> Vec<(String, String)> {
    let row = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["ii", of, name, version] if of == source => Some((name.to_owned(), version.to_owned())),
        _ => None,
    };
    lines.lines().filter_map(row).collect()
}

/// Output of a program, in English; empty if it cannot be started.
fn said(command: &mut Command) -> String {
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).stderr(Stdio::null()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UTILS: &str = "\
qemu-utils:
  Installed: 1:10.0.2+bpo12+1
  Candidate: 1:10.0.2+bpo12+1
  Version table:
 *** 1:10.0.2+bpo12+1 100
        100 /var/lib/dpkg/status
     1:7.2-7+b3 500
        500 http://mirror.example/debian bookworm/main amd64 Packages
";

    const SYSTEM: &str = "\
qemu-system-x86:
  Installed: (none)
  Candidate: 1:7.2-7+b3
  Version table:
     1:7.2-7+b3 500
        500 http://mirror.example/debian bookworm/main amd64 Packages
";

    #[test]
    fn apts_policy_is_read() {
        let policy = Policy::parse(UTILS);
        assert_eq!(policy.candidate.as_deref(), Some("1:10.0.2+bpo12+1"));
        assert_eq!(policy.versions, ["1:10.0.2+bpo12+1", "1:7.2-7+b3"]);
        assert_eq!(Policy::parse("x:\n  Candidate: (none)\n"), Policy::default());
        assert_eq!(Policy::parse(""), Policy::default());
    }

    #[test]
    fn the_installed_package_is_replaced_where_its_own_suite_is_not_in_the_lists() {
        let (system, utils) = (Policy::parse(SYSTEM), Policy::parse(UTILS));
        let fits = fits("qemu-system-x86", &system, "qemu-utils", "1:10.0.2+bpo12+1", &utils);
        assert_eq!(fits.len(), 1, "{fits:?}");
        assert_eq!(fits[0].argument(), "qemu-utils=1:7.2-7+b3");
        assert!(fits[0].line().starts_with("qemu-utils: version 1:10.0.2+bpo12+1 is replaced by"));
    }

    #[test]
    fn the_new_package_comes_from_the_installed_ones_suite_where_that_is_in_the_lists() {
        let backports = format!("{SYSTEM}     1:10.0.2+bpo12+1 100\n");
        let (system, utils) = (Policy::parse(&backports), Policy::parse(UTILS));
        let fits = fits("qemu-system-x86", &system, "qemu-utils", "1:10.0.2+bpo12+1", &utils);
        let arguments: Vec<_> = fits.iter().map(Fit::argument).collect();
        assert_eq!(arguments, ["qemu-system-x86=1:10.0.2+bpo12+1", "qemu-utils=1:7.2-7+b3"]);
    }

    #[test]
    fn nothing_is_changed_that_fits_or_cannot() {
        let (system, utils) = (Policy::parse(SYSTEM), Policy::parse(UTILS));
        assert_eq!(fits("qemu-system-x86", &system, "qemu-utils", "1:7.2-7+b3", &utils), []);
        let unknown = Policy::default();
        assert_eq!(fits("qemu-system-x86", &system, "qemu-utils", "9", &unknown), []);
    }

    #[test]
    fn the_installed_packages_of_a_source_are_told_from_others() {
        let lines = "ii qemu qemu-utils 1:10\nrc qemu qemu-old 1\nii bash bash 5\n";
        assert_eq!(installed_of(lines, "qemu"), [("qemu-utils".to_owned(), "1:10".to_owned())]);
    }
}

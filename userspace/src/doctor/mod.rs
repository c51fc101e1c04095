//! Checks of the host, with advice.
//!
//! [`Facts`] are read from the kernel. [`examine`] turns facts into findings without access to the
//! kernel, so that a test can produce each finding. [`preflight`] checks the features without which
//! an agent cannot start.

mod certificate;
mod checks;
mod datapath;
mod facts;
mod finding;
mod mounts;
mod translations;

pub use certificate::{
    Certificate, CertificateFile, Role, examine_certificate, files as certificate_files, now,
};
pub use checks::{examine, merging_uplink};
pub use datapath::{DatapathFacts, examine_datapath};
pub use facts::{
    Bpffs, Facts, HostFacts, HostSides, NeighbourTable, Probe, Subject, TcxProgram, UplinkFacts,
};
pub use finding::{Finding, Level};
pub use mounts::fleeting_mounts;
pub use translations::Translations;

/// Checks the kernel, BTF, BPF and the privileges of the process.
///
/// # Errors
/// One line that names the first feature that is missing.
pub fn preflight() -> Result<(), String> {
    first_error(&checks::host(&HostFacts::collect()))
}

fn first_error(findings: &[Finding]) -> Result<(), String> {
    match findings.iter().find(|finding| finding.level == Level::Error) {
        Some(finding) if finding.advice.is_empty() => Err(finding.detail.clone()),
        Some(finding) => Err(format!("{}: {}", finding.detail, finding.advice)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_one_line() {
        let finding = |level, advice: &str| Finding {
            check: "kernel".to_owned(),
            level,
            detail: "kernel 5.15 is too old".to_owned(),
            advice: advice.to_owned(),
        };
        assert_eq!(first_error(&[finding(Level::Warning, "wait")]), Ok(()));
        assert_eq!(
            first_error(&[finding(Level::Ok, ""), finding(Level::Error, "upgrade")]),
            Err("kernel 5.15 is too old: upgrade".to_owned())
        );
        assert_eq!(
            first_error(&[finding(Level::Error, "")]),
            Err("kernel 5.15 is too old".to_owned())
        );
    }
}

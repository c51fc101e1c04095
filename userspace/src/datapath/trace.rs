//! The programs' trace lines.

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};

use super::error::DatapathError;

/// Reads the programs' log buffer and passes its lines to the `log` facade,
/// which the agent bridges to `tracing`.
pub(super) fn forward(ebpf: &mut Ebpf) -> Result<JoinHandle<()>, DatapathError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| DatapathError::Load {
        what: "trace lines".to_owned(),
        source,
    };
    let logger = EbpfLogger::init(ebpf).map_err(|error| failed(Box::new(error)))?;
    // SAFETY: the logger keeps its descriptor, the ring buffer map's, open and
    // the same for as long as it lives, and the `AsyncFd` owns it.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
        .map_err(|error| failed(Box::new(error)))?;
    Ok(tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    }))
}

//! Memory of the agent.

/// Returns free memory of the allocator to the kernel. Reading the whole store and comparing it
/// with the maps take several times the memory of the result.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` has no preconditions, and glibc takes its own locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

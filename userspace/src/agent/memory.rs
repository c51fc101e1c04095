//! Memory of the agent.

/// Gives memory back that the allocator keeps: reading the whole store, and comparing
/// everything with the maps, takes several times what the result does.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions; glibc takes its own locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

//! Finds a rustc that can compile for BPF and builds the programs with it.

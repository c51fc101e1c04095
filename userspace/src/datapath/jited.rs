//! The machine code of a loaded program.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya_obj::generated::{bpf_cmd, bpf_prog_info};

use super::syscall::{attributes, bpf, number};

/// The most functions of one program: the limit of the kernel (`BPF_MAX_SUBPROGS`).
const MOST: usize = 256;

/// Addresses of the machine code of a program's functions, the entry first. Empty if the kernel
/// hides addresses from the caller (`kptr_restrict`).
///
/// # Errors
/// The kernel refuses (`BPF_OBJ_GET_INFO_BY_FD`).
pub fn functions(program: BorrowedFd<'_>) -> io::Result<Vec<Range<u64>>> {
    let (mut starts, mut lengths) = (vec![0_u64; MOST], vec![0_u32; MOST]);
    // SAFETY: a structure of integers, for which all bytes 0 is a value.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    info.jited_ksyms = starts.as_mut_ptr() as u64;
    info.jited_func_lens = lengths.as_mut_ptr() as u64;
    (info.nr_jited_ksyms, info.nr_jited_func_lens) = (MOST as u32, MOST as u32);
    let mut attr = attributes();
    attr.info.bpf_fd = number(program.as_fd());
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    attr.info.info = (&raw mut info) as u64;
    // SAFETY: the command writes at most the stated length to `info` and the stated number of
    // elements to the two vectors. All three outlive the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    starts.truncate(info.nr_jited_ksyms as usize);
    let known = starts.into_iter().zip(lengths).filter(|(start, _)| *start != 0);
    Ok(known.map(|(start, length)| start..start + u64::from(length)).collect())
}

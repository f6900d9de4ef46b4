//! What the allocator does with memory that is freed.
//!
//! A training step frees and asks for the same few hundred buffers of some megabytes over and over. Given back to the system
//! in between, each of their pages is a fault and is zeroed by the kernel when it is next touched, on one thread while the
//! others wait. `bench/NOTES.md` has what that costs.

#![cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    expect(unsafe_code, reason = "calls the C library")
)]

/// Tells the allocator to keep what is freed for the next buffer; the process stays as large as it has been. For `main` to
/// call first. Changes glibc's allocator alone.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep_freed() {
    /// More than any buffer that is made over and over; and what a glibc before 2.35 takes at most.
    const LARGEST: [libc::c_int; 2] = [1 << 30, 32 << 20];
    // SAFETY: changes numbers of the allocator, which takes a lock for it.
    unsafe {
        // From the heap, not a mapping each.
        let _ = LARGEST.iter().any(|largest| libc::mallopt(libc::M_MMAP_THRESHOLD, *largest) == 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        // The heap grows in steps of this.
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

/// Tells the allocator to keep what is freed for the next buffer; the process stays as large as it has been. For `main` to
/// call first. Changes glibc's allocator alone.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed() {}

//! Copies that bear a concurrent writer of the shared side.
//!
//! A data race is undefined behaviour only between accesses that the language sees. On x86-64
//! these copies are string instructions in inline assembly: the compiler sees a block that may
//! change the memory, the processor does plain byte accesses. Elsewhere they are relaxed atomics,
//! a word at a time, and so they are for a sanitizer, which can't see into assembly. Both give some
//! mixture of old and new bytes when they race, never anything else; neither orders anything,
//! callers publish by other means.
#![expect(
    unsafe_code,
    reason = "inline assembly, and atomics made from raw pointers"
)]

#[cfg(any(test, not(target_arch = "x86_64"), miri, sanitized))]
use pagefence_lock_order::primitives::shared_memory::{AtomicU8, AtomicUsize, Ordering};

/// Copies `len` bytes from `source`, which others may write meanwhile, to `target`.
///
/// # Safety
///
/// `source` is valid for reads and `target` for writes of `len` bytes; they don't overlap. While
/// it runs nobody else touches `target`, and whoever writes `source` does so through this module
/// or in another process.
pub(crate) unsafe fn from_shared(source: *const u8, target: *mut u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(any(miri, sanitized))))]
    // SAFETY: the caller's contract.
    unsafe {
        string_move(source, target, len);
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(miri, sanitized)))))]
    // SAFETY: the caller's contract.
    unsafe {
        words_from_shared(source, target, len);
    }
}

/// Copies `len` bytes from `source` to `target`, which others may read or write meanwhile.
///
/// # Safety
///
/// As [`from_shared`], with the roles changed.
pub(crate) unsafe fn to_shared(source: *const u8, target: *mut u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(any(miri, sanitized))))]
    // SAFETY: the caller's contract.
    unsafe {
        string_move(source, target, len);
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(miri, sanitized)))))]
    // SAFETY: the caller's contract.
    unsafe {
        words_to_shared(source, target, len);
    }
}

/// Sets `len` bytes at `target`, which others may read or write meanwhile, to zero.
///
/// # Safety
///
/// `target` is valid for writes of `len` bytes; see [`to_shared`] for who else may touch it.
pub(crate) unsafe fn zero_shared(target: *mut u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(any(miri, sanitized))))]
    // SAFETY: `rep stosb` writes exactly `len` bytes at `target`, which the caller vouches for,
    // and changes only the registers named here; the direction flag is clear, as the ABI
    // demands on entry to inline assembly.
    unsafe {
        std::arch::asm!(
            "rep stosb",
            inout("rcx") len => _,
            inout("rdi") target => _,
            in("al") 0_u8,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(miri, sanitized)))))]
    // SAFETY: the caller's contract.
    unsafe {
        words_zero_shared(target, len);
    }
}

/// # Safety
///
/// `source` is valid for reads and `target` for writes of `len` bytes; they don't overlap.
#[cfg(all(target_arch = "x86_64", not(any(miri, sanitized))))]
unsafe fn string_move(source: *const u8, target: *mut u8, len: usize) {
    // SAFETY: `rep movsb` reads and writes exactly `len` bytes at the two pointers, which the
    // caller vouches for, and changes only the registers named here; the direction flag is
    // clear, as the ABI demands on entry to inline assembly.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rdi") target => _,
            inout("rsi") source => _,
            options(nostack, preserves_flags),
        );
    }
}

#[cfg(any(test, not(target_arch = "x86_64"), miri, sanitized))]
const WORD: usize = size_of::<usize>();

/// How many leading bytes of `len` at `pointer` lie before the first word boundary, and how many
/// whole words follow.
#[cfg(any(test, not(target_arch = "x86_64"), miri, sanitized))]
fn split(pointer: *const u8, len: usize) -> (usize, usize) {
    let head = pointer.align_offset(WORD).min(len);
    (head, (len - head) / WORD)
}

/// # Safety
///
/// As [`from_shared`].
#[cfg(any(test, not(target_arch = "x86_64"), miri, sanitized))]
unsafe fn words_from_shared(source: *const u8, target: *mut u8, len: usize) {
    let (head, words) = split(source, len);
    let tail = head + words * WORD;
    // SAFETY: every offset is below `len`; words of `source` are aligned by `split`, `target`
    // is written unaligned. Atomics may be made from a shared const pointer, for loads only.
    unsafe {
        for at in (0..head).chain(tail..len) {
            let byte = AtomicU8::from_ptr(source.add(at).cast_mut()).load(Ordering::Relaxed);
            target.add(at).write(byte);
        }
        for word in 0..words {
            let at = head + word * WORD;
            let shared = AtomicUsize::from_ptr(source.add(at).cast::<usize>().cast_mut());
            target
                .add(at)
                .cast::<usize>()
                .write_unaligned(shared.load(Ordering::Relaxed));
        }
    }
}

/// # Safety
///
/// As [`to_shared`].
#[cfg(any(test, not(target_arch = "x86_64"), miri, sanitized))]
unsafe fn words_to_shared(source: *const u8, target: *mut u8, len: usize) {
    let (head, words) = split(target, len);
    let tail = head + words * WORD;
    // SAFETY: every offset is below `len`; words of `target` are aligned by `split`, `source`
    // is read unaligned.
    unsafe {
        for at in (0..head).chain(tail..len) {
            AtomicU8::from_ptr(target.add(at)).store(source.add(at).read(), Ordering::Relaxed);
        }
        for word in 0..words {
            let at = head + word * WORD;
            let value = source.add(at).cast::<usize>().read_unaligned();
            AtomicUsize::from_ptr(target.add(at).cast::<usize>()).store(value, Ordering::Relaxed);
        }
    }
}

/// # Safety
///
/// As [`zero_shared`].
#[cfg(any(test, not(target_arch = "x86_64"), miri, sanitized))]
unsafe fn words_zero_shared(target: *mut u8, len: usize) {
    let (head, words) = split(target, len);
    let tail = head + words * WORD;
    // SAFETY: every offset is below `len`; words of `target` are aligned by `split`.
    unsafe {
        for at in (0..head).chain(tail..len) {
            AtomicU8::from_ptr(target.add(at)).store(0, Ordering::Relaxed);
        }
        for word in 0..words {
            let at = head + word * WORD;
            AtomicUsize::from_ptr(target.add(at).cast::<usize>()).store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;

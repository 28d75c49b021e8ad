//! That the sanitizer for which this is built is on, and sees the copies of this crate: each test breaks a
//! contract in a child and wants it reported, or keeps it and wants silence.
#![expect(unsafe_code, reason = "breaks contracts, and keeps them")]

use crate::test_child::child;

/// With what a process ends that was reported.
const REPORTED: i32 = 66;

/// Runs `body` in a child under the sanitizer, which shall speak of `what`; `None` if it shall say nothing.
fn demand(name: &str, what: Option<&str>, body: impl FnOnce()) {
    let mut child = child(name, body);
    // Its report is no report of this run.
    let options = format!("exitcode={REPORTED}:log_path=stderr");
    child.env("TSAN_OPTIONS", &options);
    child.env("ASAN_OPTIONS", &options);
    let output = child.output().expect("a child");
    let said = String::from_utf8_lossy(&output.stderr);
    match what {
        Some(what) => {
            assert_eq!(output.status.code(), Some(REPORTED), "{said}");
            assert!(said.contains(what), "{said}");
        }
        None => {
            let done = Some(crate::test_child::DONE);
            assert_eq!(output.status.code(), done, "{said}");
            assert!(!said.contains("Sanitizer"), "{said}");
        }
    }
}

#[cfg(sanitized = "thread")]
mod thread {
    use pagefence_lock_order::primitives::{Arc, Mutex, thread};

    use super::*;
    use crate::{FileMemory, View, ViewKind};

    fn view() -> View {
        let memory = FileMemory::new().expect("memory");
        View::new(&memory, 0, 8, ViewKind::Shared).expect("a view")
    }

    #[test]
    fn a_store_beside_a_slice_is_reported() {
        let name = "sanitized::thread::a_store_beside_a_slice_is_reported";
        demand(name, Some("WARNING: ThreadSanitizer: data race"), || {
            let view = Arc::new(view());
            let storer = Arc::clone(&view);
            let thread = thread::spawn("storer", move || storer.store(0, &[1; 8]));
            // SAFETY: there is none: the bytes change meanwhile.
            std::hint::black_box(unsafe { view.raw(0, 8).as_bytes() }[0]);
            thread.expect("a thread").join().expect("no panic");
        });
    }

    #[test]
    fn slices_and_stores_in_turn_are_not_reported() {
        let name = "sanitized::thread::slices_and_stores_in_turn_are_not_reported";
        demand(name, None, || {
            let view = Arc::new(Mutex::new(view()));
            let storer = Arc::clone(&view);
            let thread = thread::spawn("storer", move || storer.lock().store(0, &[1; 8]));
            let locked = view.lock();
            // SAFETY: whoever stores to them takes the lock.
            std::hint::black_box(unsafe { locked.raw(0, 8).as_bytes() }[0]);
            drop(locked);
            thread.expect("a thread").join().expect("no panic");
        });
    }
}

#[cfg(sanitized = "address")]
mod address {
    use super::*;
    use crate::{PageBuffer, copy};

    #[test]
    fn a_byte_behind_a_buffer_is_reported() {
        let name = "sanitized::address::a_byte_behind_a_buffer_is_reported";
        let what = "ERROR: AddressSanitizer: heap-buffer-overflow";
        demand(name, Some(what), || {
            let buffer = PageBuffer::new(1);
            let behind = std::hint::black_box(buffer.as_ptr_range().end);
            // SAFETY: there is none: it is not of the buffer.
            std::hint::black_box(unsafe { behind.read_volatile() });
        });
    }

    /// Copies `len` bytes out of eight into eight.
    fn copy(len: usize) {
        let (source, mut target) = (Box::new([1_u64; 2]), Box::new([0_u8; 8]));
        let to = std::hint::black_box(target.as_mut_ptr());
        // SAFETY: there is none if `len` is above 8.
        unsafe { copy::from_shared(source.as_ptr().cast(), to, len) };
        std::hint::black_box(target);
    }

    #[test]
    fn a_copy_past_its_target_is_reported() {
        let name = "sanitized::address::a_copy_past_its_target_is_reported";
        let what = "ERROR: AddressSanitizer: heap-buffer-overflow";
        demand(name, Some(what), || copy(9));
    }

    #[test]
    fn a_copy_that_fits_is_not_reported() {
        let name = "sanitized::address::a_copy_that_fits_is_not_reported";
        demand(name, None, || copy(8));
    }
}

//! Both ways of copying move exactly the bytes asked for, at every alignment.

use super::{
    from_shared, to_shared, words_from_shared, words_to_shared, words_zero_shared, zero_shared,
};

type Copy = unsafe fn(*const u8, *mut u8, usize);
type Zero = unsafe fn(*mut u8, usize);

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from(at % 251).expect("below 251") + 1)
        .collect()
}

fn check_copy(copy: Copy) {
    let source = pattern(96);
    for from in 0..17 {
        for to in 0..17 {
            for len in [0, 1, 7, 8, 9, 15, 16, 17, 63, 64] {
                let mut target = vec![0; 96];
                // SAFETY: both ranges end before 96, in different vectors of this thread.
                unsafe { copy(source.as_ptr().add(from), target.as_mut_ptr().add(to), len) };
                assert!(target[..to].iter().all(|&byte| byte == 0));
                assert_eq!(target[to..to + len], source[from..from + len]);
                assert!(target[to + len..].iter().all(|&byte| byte == 0));
            }
        }
    }
}

fn check_zero(zero: Zero) {
    for at in 0..17 {
        for len in [0, 1, 7, 8, 9, 15, 16, 17, 63, 64] {
            let mut target = vec![0xEE; 96];
            // SAFETY: the range ends before 96, in a vector of this thread.
            unsafe { zero(target.as_mut_ptr().add(at), len) };
            assert!(target[..at].iter().all(|&byte| byte == 0xEE));
            assert!(target[at..at + len].iter().all(|&byte| byte == 0));
            assert!(target[at + len..].iter().all(|&byte| byte == 0xEE));
        }
    }
}

#[test]
fn this_machines_way() {
    check_copy(from_shared);
    check_copy(to_shared);
    check_zero(zero_shared);
}

#[test]
fn the_portable_way() {
    check_copy(words_from_shared);
    check_copy(words_to_shared);
    check_zero(words_zero_shared);
}

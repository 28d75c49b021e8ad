//! What programs do with maps that go by pointers.
#![expect(
    unsafe_code,
    reason = "what a pointer meets is what is tested; each caller answers for the contract"
)]

use pagefence::Map;

/// Loads what may not be there: SIGBUS ends this process then.
pub(crate) fn load(map: &Map, at: usize) -> u8 {
    assert!(at < map.len());
    // SAFETY: mapped, and volatile, as others may change it.
    unsafe { map.as_ptr().add(at).read_volatile() }
}

/// Stores to what may not be there.
pub(crate) fn store(map: &Map, at: usize, value: u8) {
    assert!(at < map.len());
    // SAFETY: as in `load`, and the callers' maps are for stores.
    unsafe { map.as_ptr().add(at).write_volatile(value) }
}

/// All of a map that nobody stores to.
pub(crate) fn as_slice(map: &Map) -> &[u8] {
    // SAFETY: the callers' maps are inside their files, which nobody writes to meanwhile.
    unsafe { map.raw().as_bytes() }
}

/// All of a private map that nobody else has.
pub(crate) fn as_mut_slice(map: &mut Map) -> &mut [u8] {
    // SAFETY: the callers' maps are inside their files, which nobody writes to meanwhile, and private.
    unsafe { std::slice::from_raw_parts_mut(map.as_ptr(), map.len()) }
}

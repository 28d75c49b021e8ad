//! Sizes as users write them.

/// Bytes, or a number with one of K, M, G, T (powers of 1024), perhaps with a point in it.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size: give bytes, or a number with K, M, G or T");
    let number = text.trim_end_matches(['i', 'B', 'b']);
    let (number, shift) = match number.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&number[..at], 10),
        Some((at, 'M' | 'm')) => (&number[..at], 20),
        Some((at, 'G' | 'g')) => (&number[..at], 30),
        Some((at, 'T' | 't')) => (&number[..at], 40),
        // A suffix belongs to a letter.
        _ if number.len() == text.len() => (number, 0),
        _ => return Err(wrong()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || number.ends_with('.') {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let mut bytes = whole.checked_mul(1 << shift).ok_or_else(wrong)?;
    if !fraction.is_empty() {
        let numerator: u128 = fraction
            .get(..18)
            .unwrap_or(fraction)
            .parse()
            .map_err(|_| wrong())?;
        let denominator = 10_u128.pow(fraction.len().min(18) as u32);
        let part = (numerator << shift) / denominator;
        let part = u64::try_from(part).map_err(|_| wrong())?;
        bytes = bytes.checked_add(part).ok_or_else(wrong)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_are_understood() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1K", 1024),
            ("16M", 16 << 20),
            ("16MiB", 16 << 20),
            ("2g", 2 << 30),
            ("1.5G", 3 << 29),
            ("100T", 100 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "K",
            "-1",
            "1X",
            "1..5G",
            "1.G",
            ".5G",
            "1 G",
            "1e9",
            "5iB",
            "99999999T",
            "18446744073709551616",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}

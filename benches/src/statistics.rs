//! Medians and quartiles.

/// The value below which a share of the values lies; `NaN` for no values.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n => sorted[((n - 1) as f64 * share).round() as usize],
    }
}

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The median of the ratios of values that were measured side by side.
pub fn median_ratio(values: &[f64], base: &[f64]) -> f64 {
    let ratios: Vec<f64> = values.iter().zip(base).map(|(v, b)| v / b).collect();
    median(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_in_the_middle() {
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(quantile(&[4.0, 3.0, 2.0, 1.0, 0.0], 0.25), 1.0);
        assert_eq!(median_ratio(&[2.0, 4.0, 60.0], &[1.0, 2.0, 3.0]), 2.0);
        assert!(median(&[]).is_nan());
    }
}

//! What a sum of losses says: perplexity and bits per byte.

/// e to the mean loss, in nats per label.
pub fn perplexity(loss: f64) -> f64 {
    loss.exp()
}

/// `nats / (bytes · ln 2)`: a loss summed over all labels, per byte of the text that they spell; comparable between
/// tokenizers, which a loss per token is not. Not a number without bytes.
pub fn bits_per_byte(nats: f64, bytes: usize) -> f64 {
    if bytes == 0 { f64::NAN } else { nats / (bytes as f64 * std::f64::consts::LN_2) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uniform_guess_of_bytes_is_eight_bits() {
        assert!((bits_per_byte(10.0 * 256f64.ln(), 10) - 8.0).abs() < 1e-12);
        assert!((perplexity(256f64.ln()) - 256.0).abs() < 1e-9);
        assert!(bits_per_byte(1.0, 0).is_nan());
    }
}

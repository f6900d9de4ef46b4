//! What the system says about memory. Linux only: elsewhere nothing is known, and nothing is guessed.

/// The most physical memory this process has held, in bytes: `VmHWM` of `/proc/self/status`.
pub fn peak_rss_bytes() -> Option<u64> {
    kib_field("/proc/self/status", "VmHWM:")
}

/// Memory that can be had without swapping, in bytes: `MemAvailable` of `/proc/meminfo`.
pub fn available_bytes() -> Option<u64> {
    kib_field("/proc/meminfo", "MemAvailable:")
}

/// The value of a line `NAME  VALUE kB`.
fn kib_field(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn linux_tells_both() {
        assert!(peak_rss_bytes().unwrap() > 1 << 20);
        assert!(available_bytes().unwrap() > 1 << 20);
    }
}

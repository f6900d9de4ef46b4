//! Times and spans of time, as people say them and as a clock shows them.

use crate::grammar::Grammar;

/// Hours in words, from one to twelve.
const HOURS: [&str; 12] =
    ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];

/// Adds the rules `time` (`quarter past seven in the evening/19:15`), `minutes` (`9 minutes/9`) `hours` and `span`, which has both.
pub fn add_to(grammar: &mut Grammar) {
    grammar.extend("time", (0..24).flat_map(times));
    let minutes = (2..60).map(|n| format!("{n} minutes/{n}"));
    let hours = (2..9).map(|n| format!("{} hours/{}", HOURS[n - 1], n * 60));
    grammar.extend("minutes", minutes.clone());
    grammar.extend("hours", hours.clone());
    grammar.extend("span", minutes.chain(hours));
}

/// The ways to say times within `hour` (0 to 23), each with its 24-hour form.
fn times(hour: usize) -> Vec<String> {
    let half = if hour < 12 { "am" } else { "pm" };
    let part = match hour {
        0..12 => "in the morning",
        12..18 => "in the afternoon",
        _ => "in the evening",
    };
    let short = (hour + 11) % 12 + 1;
    let (word, next) = (HOURS[short - 1], HOURS[short % 12]);
    let mut said = vec![
        format!("{short} {half}/{hour:02}:00"),
        format!("{short} {half}/{hour:02}:00"),
        format!("{short} o'clock {part}/{hour:02}:00"),
        format!("{word} {part}/{hour:02}:00"),
        format!("half past {word} {part}/{hour:02}:30"),
        format!("quarter past {word} {part}/{hour:02}:15"),
        format!("{hour}:30/{hour:02}:30"),
        format!("{hour}:05/{hour:02}:05"),
    ];
    // `quarter to twelve in the morning` would need a thought about noon.
    if hour % 12 != 11 {
        said.push(format!("quarter to {next} {part}/{hour:02}:45"));
    }
    said.extend([10, 15, 20, 40, 45, 50].map(|minute| format!("{short}:{minute} {half}/{hour:02}:{minute}")));
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_right() {
        let all: Vec<String> = (0..24).flat_map(times).collect();
        for time in [
            "12 am/00:00",
            "quarter to eight in the evening/19:45",
            "12:20 pm/12:20",
            "half past twelve in the afternoon/12:30",
        ] {
            assert!(all.iter().any(|said| said == time), "{time}");
        }
    }
}

//! `loss.svg`: the loss of every step, its running mean, and the evaluations, drawn from `metrics.jsonl`.

mod rates;

use plotters::prelude::*;

use crate::Error;
pub(crate) use rates::draw_rates;

/// Size of the picture.
const SIZE: (u32, u32) = (900, 520);

const PALE: RGBColor = RGBColor(168, 196, 226);
const TRAIN: RGBColor = RGBColor(31, 98, 168);
const EVAL: RGBColor = RGBColor(208, 88, 24);
const INK: RGBColor = RGBColor(64, 64, 64);

/// The curves of a run, each a list of (step, loss).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Curves {
    /// Training loss of every step.
    pub(crate) train: Vec<(f64, f64)>,
    /// Validation loss.
    pub(crate) eval: Vec<(f64, f64)>,
    /// Validation loss of the base alone.
    pub(crate) base: Option<f64>,
}

impl Curves {
    /// The curves in the rows of a `metrics.jsonl`.
    pub(crate) fn read(metrics: &str) -> Self {
        let mut curves = Self::default();
        for row in metrics.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
            let Some(point) = row["step"].as_f64().zip(row["loss"].as_f64()) else { continue };
            match row["event"].as_str() {
                Some("step") => curves.train.push(point),
                Some("eval") => curves.eval.push(point),
                _ => {}
            }
        }
        curves
    }

    fn points(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let base = self.base.map(|loss| (0.0, loss));
        self.train.iter().chain(&self.eval).copied().chain(base)
    }
}

/// The mean over a window of a fortieth of the run, ending at each step.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let window = (points.len() / 40).max(1);
    let mean = |end: usize| {
        let run = &points[(end + 1).saturating_sub(window)..=end];
        run.iter().map(|(_, loss)| loss).sum::<f64>() / run.len() as f64
    };
    points.iter().enumerate().map(|(i, (step, _))| (*step, mean(i))).collect()
}

/// At most some 1500 points, evenly spaced: more cannot be told apart.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let every = points.len().div_ceil(1500).max(1);
    let last = points.len().saturating_sub(1);
    points.iter().enumerate().filter(|(i, _)| i % every == 0 || *i == last).map(|(_, point)| *point).collect()
}

/// The picture as SVG text, with its title and the unit of the loss.
pub(crate) fn draw(titles: (&str, &str), curves: &Curves) -> Result<String, Error> {
    let mut svg = String::new();
    draw_on(&mut svg, titles, curves).map_err(|what| Error::output(format!("loss.svg: {what}")))?;
    Ok(svg)
}

fn draw_on(svg: &mut String, (title, unit): (&str, &str), curves: &Curves) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let last = curves.points().map(|(step, _)| step).fold(1.0, f64::max);
    let low = curves.points().map(|(_, loss)| loss).fold(f64::INFINITY, f64::min).min(1e6);
    let high = curves.points().map(|(_, loss)| loss).fold(low, f64::max);
    let margin = ((high - low) * 0.06).max(1e-3);
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(|error| text(&error))?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20).into_font().color(&INK))
        .margin(16)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..last, (low - margin).max(0.0)..high + margin)
        .map_err(|error| text(&error))?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc(format!("loss ({unit})"))
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
        .bold_line_style(RGBColor(220, 220, 220))
        .light_line_style(WHITE)
        .axis_style(INK)
        .draw()
        .map_err(|error| text(&error))?;
    let single = curves.train.len() <= 40;
    let pale = if single { Vec::new() } else { thin(&curves.train) };
    let base = curves.base.map(|loss| vec![(0.0, loss), (last, loss)]).unwrap_or_default();
    let lines = [
        ("train, each step", pale, PALE, 1),
        (if single { "train" } else { "train, running mean" }, thin(&smooth(&curves.train)), TRAIN, 2),
        ("evaluation", curves.eval.clone(), EVAL, 2),
        ("evaluation of the base", base, INK, 1),
    ];
    for (name, points, color, width) in lines.into_iter().filter(|(_, points, ..)| !points.is_empty()) {
        let style = color.stroke_width(width);
        let series = chart.draw_series(LineSeries::new(points, style)).map_err(|error| text(&error))?;
        series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
    }
    let dots = curves.eval.iter().map(|point| Circle::new(*point, 3, EVAL.filled()));
    chart.draw_series(dots).map_err(|error| text(&error))?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 14).into_font().color(&INK))
        .draw()
        .map_err(|error| text(&error))?;
    root.present().map_err(|error| text(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_curves_and_curves_a_picture_with_its_labels() {
        let row = |event: &str, step: i32, loss: f64| {
            serde_json::json!({"event": event, "step": step, "loss": loss}).to_string()
        };
        let mut rows = Vec::new();
        for step in 1..=200 {
            let loss = 1.0 + 2.0 * (-f64::from(step) / 50.0).exp() + 0.1 * f64::from(step * 37 % 11);
            rows.push(row("step", step, loss));
            if step % 50 == 0 {
                rows.push(row("eval", step, loss + 0.3));
            }
        }
        let metrics = rows.join("\n");
        let curves = Curves { base: Some(4.0), ..Curves::read(&metrics) };
        assert_eq!((curves.train.len(), curves.eval.len()), (200, 4));
        let svg = draw(("sentiment on tiny", "nats per label"), &curves).unwrap();
        for text in ["step", "loss (nats per label)", "evaluation of the base", "train, running mean"] {
            assert!(svg.contains(text), "{text}");
        }
        if let Ok(path) = std::env::var("TAPER_PLOT") {
            std::fs::write(path, svg).unwrap();
        }
    }

    #[test]
    fn a_run_of_one_step_or_none_is_drawn_too() {
        draw(("x", "nats per label"), &Curves::default()).unwrap();
        draw(("x", "nats per label"), &Curves { train: vec![(1.0, 2.0)], ..Curves::default() }).unwrap();
    }
}

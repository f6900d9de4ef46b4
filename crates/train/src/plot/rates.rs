//! `lr.svg`: the loss after a step at each learning rate of a range test, over a logarithmic axis.

use plotters::prelude::*;

use super::{EVAL, INK, PALE, SIZE, TRAIN};
use crate::{Error, RangeTest};

const GRID: RGBColor = RGBColor(220, 220, 220);

/// The picture as SVG text.
pub(crate) fn draw_rates(title: &str, test: &RangeTest) -> Result<String, Error> {
    let mut svg = String::new();
    draw_on(&mut svg, title, test).map_err(|what| Error::output(format!("lr.svg: {what}")))?;
    Ok(svg)
}

fn draw_on(svg: &mut String, title: &str, test: &RangeTest) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (low, high) = range(test);
    let rates = test.tried.iter().map(|tried| tried.lr);
    let (first, last) =
        rates.fold((1.0, 1e-6), |(first, last): (f64, f64), lr| (first.min(lr), last.max(lr)));
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(|error| text(&error))?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20).into_font().color(&INK))
        .margin(16)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d((first..last).log_scale(), low..high)
        .map_err(|error| text(&error))?;
    chart
        .configure_mesh()
        .x_desc("learning rate")
        .y_desc("loss after the step")
        .x_labels(9)
        .x_label_formatter(&|lr| format!("{lr:.0e}"))
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
        .bold_line_style(GRID)
        .light_line_style(WHITE)
        .axis_style(INK)
        .draw()
        .map_err(|error| text(&error))?;
    // Beyond the upper edge a line ends where it leaves the picture, and does not run along it.
    let inside = |loss: fn(&crate::Tried) -> f64| {
        let points = test.tried.iter().map(move |tried| (tried.lr, loss(tried)));
        points.take_while(|(_, loss)| *loss <= high).collect::<Vec<_>>()
    };
    let lines = [
        ("each step", inside(|tried| tried.loss), PALE, 1),
        ("smoothed", inside(|tried| tried.smoothed), TRAIN, 2),
    ];
    for (name, points, color, width) in lines {
        let style = color.stroke_width(width);
        let series = chart.draw_series(LineSeries::new(points, style)).map_err(|error| text(&error))?;
        series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
    }
    let marks =
        [("steepest fall", test.steepest, EVAL), ("a tenth of the lowest", test.tenth_of_lowest, INK)];
    for (name, lr, color) in marks.into_iter().filter_map(|(name, lr, color)| Some((name, lr?, color))) {
        let style = color.stroke_width(1);
        let mark = DashedLineSeries::new([(lr, low), (lr, high)], 6, 4, style);
        let series = chart.draw_series(mark).map_err(|error| text(&error))?;
        let label = format!("{name}, {lr:.1e}");
        series.label(label).legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 14).into_font().color(&INK))
        .draw()
        .map_err(|error| text(&error))?;
    root.present().map_err(|error| text(&error))
}

/// The losses that are shown: of an explosion no more than as much again as the fall before it.
fn range(test: &RangeTest) -> (f64, f64) {
    let all = || test.tried.iter().flat_map(|tried| [tried.loss, tried.smoothed]);
    let low = all().fold(f64::INFINITY, f64::min).min(1e6);
    let first = test.tried.first().map_or(low, |tried| tried.loss.max(tried.smoothed));
    let fall = (first - low).max(0.05 * first.abs()).max(1e-3);
    let high = all().fold(low, f64::max).min(first + fall);
    ((low - 0.1 * fall).max(0.0), high + 0.1 * fall)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tried;

    #[test]
    fn a_test_becomes_a_picture_with_its_suggestions() {
        let tried = |i: i32| {
            let lr = 10f64.powf(f64::from(i) / 12.5 - 7.0);
            let smoothed = 3.0 - 2.0 / (1.0 + (1e-3 / lr).powf(1.5)) + (lr / 0.5).powi(4);
            Tried { lr, loss: smoothed + 0.1 * (f64::from(i * 37 % 11) / 5.0 - 1.0), smoothed }
        };
        let test = RangeTest {
            tried: (0..90).map(tried).collect(),
            diverged: true,
            steepest: Some(1e-3),
            tenth_of_lowest: Some(8e-3),
            picture: "lr.svg".into(),
        };
        let svg = draw_rates("learning rates on tiny", &test).unwrap();
        for text in ["learning rate", "steepest fall, 1.0e-3", "a tenth of the lowest, 8.0e-3", "smoothed"] {
            assert!(svg.contains(text), "{text}");
        }
        let none = RangeTest { tried: Vec::new(), steepest: None, tenth_of_lowest: None, ..test };
        draw_rates("none", &none).unwrap();
    }
}

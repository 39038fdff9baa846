//! What every plot is drawn on: an area of SVG, axes with units, colours that follow the page's.

use std::ops::Range;

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;

/// What text and axes are drawn in. The page's style sheet replaces these two by its own, for paper
/// and for dark screens.
pub(super) const INK: RGBColor = RGBColor(1, 1, 1);
pub(super) const FAINT: RGBColor = RGBColor(1, 1, 2);

/// Colours that people who see few colours tell apart, on light and on dark.
pub(super) const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(148, 103, 189),
    RGBColor(128, 128, 128),
];

pub(super) const WIDTH: u32 = 760;
const FONT: i32 = 13;

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(super) type Chart<'a, 'b, X, Y> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>;

/// A colour of a series.
pub(super) fn colour(number: usize) -> RGBColor {
    COLOURS[number % COLOURS.len()]
}

/// The picture that `paint` paints, as SVG.
pub(super) fn picture(
    height: u32,
    paint: impl FnOnce(&Area<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        paint(&area)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// A plot cannot be drawn.
pub(super) fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw a plot: {error}")
}

/// What an axis is called, and how its values are written.
pub(super) struct Axis<'a> {
    pub(super) name: &'a str,
    pub(super) value: &'a dyn Fn(f64) -> String,
}

/// A chart with room for its axes.
pub(super) fn chart<'a, 'b, X, Y>(
    area: &'a Area<'b>,
    (x, x_axis): (X, Axis<'_>),
    (y, y_axis): (Y, Axis<'_>),
) -> anyhow::Result<Chart<'a, 'b, X::CoordDescType, Y::CoordDescType>>
where
    X: plotters::coord::ranged1d::AsRangedCoord<Value = f64>,
    Y: plotters::coord::ranged1d::AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(24)
        .x_label_area_size(42)
        .y_label_area_size(84)
        .build_cartesian_2d(x, y)
        .map_err(failed)?;
    let font = ("sans-serif", FONT).into_font().color(&INK);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(INK)
        .label_style(font.clone())
        .axis_desc_style(font)
        .x_desc(x_axis.name)
        .y_desc(y_axis.name)
        .x_label_formatter(&|value| (x_axis.value)(*value))
        .y_label_formatter(&|value| (y_axis.value)(*value))
        .draw()
        .map_err(failed)?;
    Ok(chart)
}

/// From nothing to a little more than the most of these.
pub(super) fn up_to(values: impl Iterator<Item = f64>) -> Range<f64> {
    let most = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
    0.0..if most > 0.0 { most * 1.05 } else { 1.0 }
}

/// From less than the least to more than the most, none of them nothing: for a logarithmic axis.
pub(super) fn decades(values: impl Iterator<Item = f64>) -> Range<f64> {
    let positive = values.filter(|value| *value > 0.0 && value.is_finite());
    let (least, most) =
        positive.fold((f64::MAX, 0.0f64), |(least, most), v| (least.min(v), most.max(v)));
    match most > 0.0 {
        true => least * 0.8..most * 1.25,
        false => 1.0..10.0,
    }
}

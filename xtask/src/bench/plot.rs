//! `cargo xtask bench plot`: results as a picture, start time and change latency over the number of Services.
//!
//! Reads what `bench sync --json` wrote and writes an SVG file; measures nothing.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::report::{Figures, Report};
use crate::tools;

/// What to draw.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Files that `bench sync --json` wrote.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Where to write the picture; by default bench.svg in cargo's target directory.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Points of a chart: number of Services, milliseconds.
type Points = Vec<(f64, f64)>;

const WIDTH: u32 = 960;
const HEIGHT: u32 = 420;

/// What kube-proxy 1.36 takes in its mode nftables, as published: not measured here.
const PUBLISHED: &str = "kube-proxy 1.36, as published (other machine)";
const PUBLISHED_START: &[(f64, f64)] = &[(10_000.0, 13_800.0)];
const PUBLISHED_CHANGE: &[(f64, f64)] = &[(1_000.0, 134.0), (10_000.0, 3_500.0)];

// Colours that are told apart on light and on dark pages.
const BACKGROUND: RGBColor = RGBColor(255, 255, 255);
const OURS: RGBColor = RGBColor(33, 113, 181);
const OTHERS: [RGBColor; 3] = [
    RGBColor(217, 95, 2),
    RGBColor(27, 120, 55),
    RGBColor(118, 42, 131),
];
const ELSEWHERE: RGBColor = RGBColor(120, 120, 120);

/// One of the two charts.
struct Chart {
    title: &'static str,
    ours: Points,
    /// By their names.
    others: Vec<(String, Points)>,
    published: &'static [(f64, f64)],
}

/// Draws both charts beside each other.
pub(super) fn run(args: &Args) -> Result<()> {
    let output = match &args.output {
        Some(file) => file.clone(),
        None => tools::target_dir()?.join("bench.svg"),
    };
    let mut all = Report::default();
    for file in &args.files {
        all.clusters.extend(Report::read(file)?.clusters);
    }
    let picture = svg(&all)?;
    fs::write(&output, picture).with_context(|| output.display().to_string())?;
    println!("{}", output.display());
    Ok(())
}

/// The picture as text.
fn svg(report: &Report) -> Result<String> {
    ensure!(!report.clusters.is_empty(), "the files hold no results");
    let all = report.clusters.iter().flat_map(|results| &results.others);
    let names: BTreeSet<&str> = all.map(|other| &*other.name).collect();
    let chart = |title, published, figure: fn(&Figures) -> f64| {
        let of_other = |name: &&str| {
            let points = points(report, |results| {
                let mut others = results.others.iter();
                let other = others.find(|other| other.name == *name)?;
                Some(figure(&other.figures))
            });
            (format!("{name}, this machine"), points)
        };
        Chart {
            title,
            ours: points(report, |results| Some(figure(&results.proxyd))),
            others: names.iter().map(of_other).collect(),
            published,
        }
    };
    let start = chart("Start to all rules in the kernel", PUBLISHED_START, |f| {
        f.start_ms
    });
    let change = chart(
        "One endpoint change, API server to kernel (median)",
        PUBLISHED_CHANGE,
        |f| f.change_p50_ms,
    );
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT)).into_drawing_area();
        draw(&root, [&start, &change]).map_err(|error| anyhow!("{error}"))?;
    }
    Ok(text)
}

/// A point for each number of Services: the slowest, where several clusters have the same.
fn points(report: &Report, figure: impl Fn(&super::report::Results) -> Option<f64>) -> Points {
    let mut points: Points = report
        .clusters
        .iter()
        .filter_map(|results| Some((results.cluster.services as f64, figure(results)?)))
        .collect();
    points.sort_by(|(n, ms), (m, other)| n.total_cmp(m).then(other.total_cmp(ms)));
    points.dedup_by_key(|(services, _)| *services);
    points
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(root: &DrawingArea<SVGBackend<'_>, Shift>, charts: [&Chart; 2]) -> Drawn {
    root.fill(&BACKGROUND)?;
    let halves = root.split_evenly((1, 2));
    for (area, chart) in halves.iter().zip(charts) {
        draw_chart(area, chart)?;
    }
    root.present()?;
    Ok(())
}

fn draw_chart(area: &DrawingArea<SVGBackend<'_>, Shift>, chart: &Chart) -> Drawn {
    let all = || {
        let others = chart.others.iter().flat_map(|(_, points)| points);
        let all = chart.ours.iter().chain(others).chain(chart.published);
        all.copied()
    };
    let services = range(all().map(|(services, _)| services), 1.6);
    let millis = decades(&range(all().map(|(_, ms)| ms), 1.6));
    let mut plot = ChartBuilder::on(area)
        .caption(chart.title, ("sans-serif", 16))
        .margin(10)
        .margin_right(20)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(services.log_scale(), millis.log_scale())?;
    plot.configure_mesh()
        .x_desc("Services")
        .x_label_formatter(&|services| thousands(*services))
        .y_label_formatter(&|ms| time(*ms))
        .bold_line_style(RGBColor(200, 200, 200))
        .light_line_style(RGBColor(238, 238, 238))
        .draw()?;
    let others = chart.others.iter().zip(OTHERS.iter().cycle());
    let others = others.map(|((name, points), colour)| (&**name, &**points, *colour));
    let lines = [
        ("proxyd", &*chart.ours, OURS),
        (PUBLISHED, chart.published, ELSEWHERE),
    ];
    for (name, points, colour) in lines.into_iter().chain(others) {
        if points.is_empty() {
            continue;
        }
        // What was not measured here has hollow dots.
        let is_measured = colour != ELSEWHERE;
        let dot = move |at: (f64, f64)| match is_measured {
            true => Circle::new(at, 4, colour.filled()),
            false => Circle::new(at, 4, colour.stroke_width(2)),
        };
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
        plot.draw_series(line)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        plot.draw_series(points.iter().copied().map(dot))?;
    }
    plot.configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 12))
        .background_style(BACKGROUND.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    Ok(())
}

/// From the least to the most, with room at both ends.
fn range(values: impl Iterator<Item = f64>, room: f64) -> Range<f64> {
    let (least, most) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(least, most), value| {
        (least.min(value), most.max(value))
    });
    least / room..most * room
}

/// Whole powers of ten around a range, and one more at the top, where the legend is.
fn decades(range: &Range<f64>) -> Range<f64> {
    let power = |exponent: f64| 10_f64.powf(exponent);
    power(range.start.log10().floor())..power(range.end.log10().ceil() + 1.0)
}

fn time(ms: f64) -> String {
    if ms >= 1_000.0 {
        format!("{} s", ms / 1_000.0)
    } else {
        format!("{ms} ms")
    }
}

fn thousands(number: f64) -> String {
    let text = format!("{number:.0}");
    match text.len() {
        4.. => format!("{},{}", &text[..text.len() - 3], &text[text.len() - 3..]),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::{Other, Results};
    use super::super::workload::Workload;
    use super::*;

    fn results(services: usize, start_ms: f64, peer: Option<f64>) -> Results {
        let figures = |start_ms| Figures {
            start_ms,
            change_p50_ms: 0.3,
            ..Figures::default()
        };
        Results {
            cluster: Workload {
                services,
                endpoints: 5,
            },
            proxyd: figures(start_ms),
            others: peer
                .map(|start_ms| Other {
                    name: "kube-proxy".to_owned(),
                    figures: figures(start_ms),
                })
                .into_iter()
                .collect(),
            dry_run: None,
        }
    }

    #[test]
    fn slowest_of_clusters_with_as_many_services_counts() {
        let clusters = vec![
            results(10_000, 500.0, None),
            results(1_000, 90.0, None),
            results(10_000, 700.0, Some(13_000.0)),
        ];
        let report = Report {
            clusters,
            ..Report::default()
        };
        let ours = points(&report, |results| Some(results.proxyd.start_ms));
        assert_eq!(ours, [(1_000.0, 90.0), (10_000.0, 700.0)]);
        let peer = points(&report, |results| {
            Some(results.others.first()?.figures.start_ms)
        });
        assert_eq!(peer, [(10_000.0, 13_000.0)]);
    }

    #[test]
    fn picture_names_what_is_in_it_and_what_is_from_elsewhere() {
        let mut report = Report::default();
        report.clusters.push(results(1_000, 90.0, None));
        let alone = svg(&report).unwrap();
        assert!(alone.starts_with("<svg"), "{alone}");
        for text in ["proxyd", PUBLISHED, "10,000", "Services"] {
            assert!(alone.contains(text), "{text}: {alone}");
        }
        assert!(!alone.contains("this machine"));
        report.clusters.push(results(10_000, 500.0, Some(13_000.0)));
        assert!(svg(&report).unwrap().contains("kube-proxy, this machine"));
        assert!(svg(&Report::default()).is_err());
    }
}

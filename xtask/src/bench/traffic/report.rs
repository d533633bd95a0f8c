//! Rounds → ratios: tables for readers, and JSON with stable names.
//!
//! Two paths are compared round by round, and the median over the rounds is told: what disturbs a round disturbs both.

use std::fmt;

use comfy_table::{Table, presets};
use serde_json::{Map, Value, json};

use super::{Caller, Figure, Figures, Label, To};

/// What the rounds came to.
pub(super) struct Report {
    paths: Vec<Label>,
    /// By round, and then by path.
    rounds: Vec<Vec<Figures>>,
}

/// One path compared with another, both by their place in the list.
struct Comparison {
    of: usize,
    to: usize,
}

impl Report {
    /// A report on rounds that have the figures of these paths, in this order.
    pub(super) fn new(paths: Vec<Label>, rounds: Vec<Vec<Figures>>) -> Self {
        Self { paths, rounds }
    }

    /// The whole as JSON. Names end in their unit; ratios have none.
    pub(super) fn json(&self) -> Value {
        let paths = (0..self.paths.len()).map(|index| {
            let figures = Figure::ALL.map(|figure| {
                let (name, unit) = figure.name();
                (format!("{name}_{unit}"), self.median(figure, index).into())
            });
            let figures: Map<String, Value> = figures.into_iter().collect();
            with(self.labels(index), "median", figures.into())
        });
        let ratios = |comparisons: Vec<Comparison>| -> Vec<Value> {
            let ratio = |comparison: &Comparison| {
                let figures = Figure::ALL.map(|figure| {
                    (
                        format!("{}_ratio", figure.name().0),
                        self.ratio(figure, comparison).into(),
                    )
                });
                let figures: Map<String, Value> = figures.into_iter().collect();
                json!({
                    "of": self.labels(comparison.of),
                    "to": self.labels(comparison.to),
                    "median": figures,
                })
            };
            comparisons.iter().map(ratio).collect()
        };
        json!({
            "bench": "traffic",
            "rounds": self.rounds.len(),
            "paths": paths.collect::<Vec<_>>(),
            "service_to_pod": ratios(self.service_to_pod()),
            "to_no_rules": ratios(self.to_no_rules()),
            "growth": ratios(self.growth()),
        })
    }

    /// Through each Service, compared with the way to the pod beside it.
    fn service_to_pod(&self) -> Vec<Comparison> {
        let services = self.indexes(|path| path.to == To::Service);
        let beside = |of: usize| {
            let service = &self.paths[of];
            let is_beside = |path: &Label| {
                path.to == To::Pod && path.proxy == service.proxy && path.from == service.from
            };
            self.indexes(is_beside)
                .first()
                .map(|to| Comparison { of, to: *to })
        };
        services.into_iter().filter_map(beside).collect()
    }

    /// Everything, compared with the way to the pod where there are no rules.
    fn to_no_rules(&self) -> Vec<Comparison> {
        let bare = self.indexes(|path| path.proxy.is_none());
        let others = self.indexes(|path| path.proxy.is_some() && path.from == Caller::Client);
        let compare = |to: &usize| {
            others
                .iter()
                .map(|of| Comparison { of: *of, to: *to })
                .collect()
        };
        bare.first().map(compare).unwrap_or_default()
    }

    /// The most Services, compared with the fewest, of each proxy; to the pod too, which shows what chance does.
    fn growth(&self) -> Vec<Comparison> {
        let mut comparisons: Vec<Comparison> = Vec::new();
        for (of, path) in self.paths.iter().enumerate() {
            let Some((name, services)) = &path.proxy else {
                continue;
            };
            let alike = self.indexes(|other| {
                let proxy = other.proxy.as_ref();
                other.to == path.to
                    && other.from == path.from
                    && proxy.is_some_and(|(other, _)| other == name)
            });
            let services_of = |index: &usize| self.paths[*index].proxy.as_ref().map_or(0, |p| p.1);
            let fewest = alike.iter().copied().min_by_key(services_of);
            let is_most = alike.iter().all(|other| services_of(other) <= *services);
            comparisons.extend(
                fewest
                    .filter(|fewest| is_most && *fewest != of)
                    .map(|to| Comparison { of, to }),
            );
        }
        comparisons
    }

    fn indexes(&self, is_wanted: impl Fn(&Label) -> bool) -> Vec<usize> {
        let paths = self.paths.iter().enumerate();
        let wanted = paths.filter(|(_, path)| is_wanted(path));
        wanted.map(|(index, _)| index).collect()
    }

    /// What says which path it is.
    fn labels(&self, index: usize) -> Value {
        let path = &self.paths[index];
        let proxy = path.proxy.as_ref();
        json!({
            "proxy": proxy.map(|(name, _)| name),
            "services": proxy.map_or(0, |(_, services)| *services),
            "path": match path.to {
                To::Pod => "pod",
                To::Service => "service",
            },
            "loopback": path.from == Caller::Server,
        })
    }

    fn median(&self, figure: Figure, index: usize) -> f64 {
        median(self.rounds.iter().map(|round| round[index].get(figure)))
    }

    fn ratio(&self, figure: Figure, Comparison { of, to }: &Comparison) -> f64 {
        let ratio = |round: &Vec<Figures>| round[*of].get(figure) / round[*to].get(figure);
        median(self.rounds.iter().map(ratio))
    }

    /// A table with a row for each comparison.
    fn table(&self, title: &str, comparisons: &[Comparison]) -> Table {
        let mut table = table(title);
        for comparison in comparisons {
            let ratios = Figure::ALL.map(|figure| format!("{:.2}", self.ratio(figure, comparison)));
            let name = self.paths[comparison.of].to_string();
            table.add_row([name].into_iter().chain(ratios));
        }
        table
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nMedians of {} rounds:", self.rounds.len())?;
        let mut medians = table("path");
        for (index, path) in self.paths.iter().enumerate() {
            let shown = Figure::ALL.map(|figure| figure.shown(self.median(figure, index)));
            medians.add_row([path.to_string()].into_iter().chain(shown));
        }
        writeln!(f, "{medians}")?;
        writeln!(
            f,
            "\nRatios, each a median of the rounds' own. Rates: higher is better; latencies: lower is better."
        )?;
        let service_to_pod = self.table("Service / pod, same rules", &self.service_to_pod());
        writeln!(f, "{service_to_pod}")?;
        let to_no_rules = self.table("… / pod, without rules", &self.to_no_rules());
        writeln!(f, "{to_no_rules}")?;
        let growth = self.growth();
        if growth.is_empty() {
            return writeln!(f, "NOT MEASURED: growth: --services names one number only");
        }
        write!(f, "{}", self.table("… / fewest Services", &growth))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.proxy {
            Some((name, services)) => write!(f, "{name}, {services}: ")?,
            None => f.write_str("no rules: ")?,
        }
        if self.from == Caller::Server {
            f.write_str("loopback, ")?;
        }
        f.write_str(match self.to {
            To::Pod => "pod",
            To::Service => "Service",
        })
    }
}

fn table(title: &str) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    let figures = Figure::ALL.map(Figure::title);
    table.set_header([title].into_iter().chain(figures));
    table
}

/// An object with one more field.
fn with(mut object: Value, field: &str, value: Value) -> Value {
    object[field] = value;
    object
}

/// The one in the middle, or the mean of the two there.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (
        values.get(values.len().saturating_sub(1) / 2),
        values.get(values.len() / 2),
    );
    match (low, high) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No rules, and a proxy with 1 and with 10 Services; the machine is ten times slower in the last round.
    fn report() -> Report {
        let path = |services: Option<u32>, to| Label {
            proxy: services.map(|services| ("proxyd".to_owned(), services)),
            from: Caller::Client,
            to,
        };
        let paths = vec![
            path(None, To::Pod),
            path(Some(1), To::Pod),
            path(Some(1), To::Service),
            path(Some(10), To::Pod),
            path(Some(10), To::Service),
        ];
        let round = |machine: f64| {
            [10.0, 20.0, 30.0, 20.0, 60.0]
                .map(|value| Figures::all(value * machine))
                .to_vec()
        };
        Report::new(paths, vec![round(1.0), round(1.1), round(10.0)])
    }

    #[test]
    fn paths_are_compared_within_their_rounds() {
        let json = report().json();
        let ratios = |field: &str| -> Vec<f64> {
            let list = json[field].as_array().unwrap().iter();
            list.map(|ratio| ratio["median"]["connect_p50_ratio"].as_f64().unwrap())
                .collect()
        };
        assert_eq!(ratios("service_to_pod"), [1.5, 3.0]);
        assert_eq!(ratios("to_no_rules"), [2.0, 3.0, 2.0, 6.0]);
        assert_eq!(ratios("growth"), [1.0, 2.0]);
        assert_eq!(json["growth"][1]["of"]["services"], 10);
        assert_eq!(json["growth"][1]["to"]["services"], 1);
        assert_eq!(json["paths"][2]["median"]["connects_per_second"], 33.0);
    }

    #[test]
    fn tables_name_the_paths() {
        let text = report().to_string();
        let rows = text
            .lines()
            .filter(|line| line.contains("proxyd, 10: Service"));
        assert_eq!(rows.count(), 4, "{text}");
    }

    #[test]
    fn median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median([].into_iter()).is_nan());
    }
}

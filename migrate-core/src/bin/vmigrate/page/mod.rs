//! A report as one HTML file: readable without scripts or network, on paper, on light and on dark.

mod canvas;
mod plots;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use migrate_core::report::metric::Metric;
use migrate_core::report::{RunReport, RunVerdict, StatusKind};
use workload::provenance::Provenance;

use crate::documents::Kept;
use crate::show::{figure, time};
use canvas::COLOURS;
use plots::Plot;

/// Runs that have details of their own; more would make a page that nobody reads.
const DETAILED: usize = 40;
/// Rounds shown of each.
const ROUNDS: usize = 60;
/// Figures that have a column.
const COLUMNS: [&str; 6] = ["time", "setup", "downtime", "felt", "lost", "sent-over-least"];

const STYLE: &str = include_str!("style.css");

/// The page about these runs.
pub(crate) fn of(title: &str, runs: &[Kept]) -> anyhow::Result<String> {
    let plots = plots::all(runs)?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="generator" content=(format!("vmigrate {}", env!("CARGO_PKG_VERSION")));
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { (title) }
                    p.answer { (answer(runs)) }
                    (table(runs))
                    @for plot in &plots { (show(plot)) }
                    (words())
                    (details(runs))
                    (origins(runs))
                }
            }
        }
    };
    Ok(page.into_string())
}

fn answer(runs: &[Kept]) -> String {
    let count = |what: &dyn Fn(&RunReport) -> bool| runs.iter().filter(|k| what(&k.run)).count();
    let moved = count(&|run| run.migrated);
    let proven = count(&|run| run.verdict == RunVerdict::Proven);
    let mut text = match runs.len() {
        1 if moved == 1 => "The guest migrated".to_owned(),
        1 => "The guest did not migrate".to_owned(),
        all => format!("{moved} of {all} guests migrated"),
    };
    text += &match (moved, proven) {
        (0, _) => String::new(),
        (moved, proven) if moved == proven => {
            "; every byte of memory arrived as it was last written".to_owned()
        }
        (moved, proven) => format!("; of {proven} of {moved} the memory is proven"),
    };
    let wrong = count(&|run| run.verdict == RunVerdict::Wrong);
    if wrong > 0 {
        text += &format!("; the memory of {wrong} is WRONG");
    }
    let gave_up = count(&|run| run.status.kind == StatusKind::GaveUp);
    if gave_up > 0 {
        text += &format!("; {gave_up} were given up and ran on at their source");
    }
    text + "."
}

fn columns() -> impl Iterator<Item = &'static Metric> {
    COLUMNS.iter().filter_map(|name| Metric::named(name))
}

fn verdict(run: &RunReport) -> Markup {
    let class = match run.verdict {
        RunVerdict::Proven => "good",
        RunVerdict::Inconclusive | RunVerdict::NotMigrated => "open",
        RunVerdict::Wrong => "bad",
    };
    html! { span class=(class) { (run.verdict) } }
}

fn table(runs: &[Kept]) -> Markup {
    html! {
        div.wide {
            table {
                caption { "Runs" }
                thead {
                    tr {
                        th { "#" }
                        th { "run" }
                        th { "verdict" }
                        @for metric in columns() { th title=(metric.about) { (metric.name) } }
                        th { "rounds" }
                    }
                }
                tbody {
                    @for (index, kept) in runs.iter().enumerate() {
                        tr {
                            td { (index + 1) }
                            td.text { (kept.case.name()) }
                            td { (verdict(&kept.run)) }
                            @if kept.run.migrated {
                                @for metric in columns() {
                                    td {
                                        @match (metric.of)(&kept.run) {
                                            Some(value) => (figure(metric.unit, value)),
                                            None => "-",
                                        }
                                    }
                                }
                                td { (kept.run.last().map_or(0, |m| m.rounds.len())) }
                            } @else {
                                td.text colspan=(COLUMNS.len() + 1) { (kept.run.status.text) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn show(plot: &Plot) -> Markup {
    html! {
        section {
            h2 { (plot.title) }
            figure {
                div role="img" aria-label=(plot.title) { (PreEscaped(&plot.svg)) }
                ul.legend {
                    @for (number, name) in &plot.legend {
                        li { span style=(format!("background:{}", css(*number))) {} (name) }
                    }
                }
                figcaption { (plot.about) }
            }
        }
    }
}

fn css(number: usize) -> String {
    let colour = COLOURS[number % COLOURS.len()];
    format!("rgb({},{},{})", colour.0, colour.1, colour.2)
}

/// What the words mean.
fn words() -> Markup {
    let figures = columns().map(|metric| (metric.name, metric.about));
    let others = [
        ("r", "bytes of pages that the guest dirties per second over those that the link carries"),
        ("stun", "the time in which the guest stands still and the last pages are sent"),
        ("SDPS", "stun during page send: the guest is held so that it dirties less than is sent"),
        ("beta", "the share of the send rate at which SDPS holds the dirty rate"),
        ("PROVEN", "every line of memory was compared with what the guest last wrote"),
    ];
    html! {
        section {
            h2 { "Words" }
            dl {
                @for (name, about) in figures.chain(others) {
                    dt { (name) }
                    dd { (about) }
                }
            }
        }
    }
}

fn details(runs: &[Kept]) -> Markup {
    html! {
        section {
            h2 { "Each run" }
            @for (index, kept) in runs.iter().enumerate().take(DETAILED) {
                (detail(index + 1, kept))
            }
            @if runs.len() > DETAILED {
                p { "The other " (runs.len() - DETAILED) " stand in the table alone." }
            }
        }
    }
}

fn detail(number: usize, kept: &Kept) -> Markup {
    let run = &kept.run;
    html! {
        details {
            summary { (number) ". " (kept.case.name()) ": " (verdict(run)) }
            p { (run.status.text) }
            @for reason in crate::show::run::reasons(run) { p.open { (reason) } }
            @if let Some(link) = &run.link {
                p { "To " (link.to) ", " (link.protection) "." }
            }
            @if let Some(m) = run.last() {
                @if !m.decisions.is_empty() {
                    ul {
                        @for decision in &m.decisions {
                            li { (time(decision.at_ms)) ": " (decision.what) }
                        }
                    }
                }
                @if !m.rounds.is_empty() {
                    div.wide {
                        table {
                            thead {
                                tr {
                                    th { "round" } th { "at" } th { "took" } th { "pages sent" }
                                    th { "zero" } th { "left" } th { "sent/s" } th { "dirtied/s" }
                                    th { "held" }
                                }
                            }
                            tbody {
                                @for r in m.rounds.iter().take(ROUNDS) {
                                    tr {
                                        td { (r.round) } td { (time(r.start_ms)) }
                                        td { (time(r.elapsed_ms)) } td { (r.sent_pages) }
                                        td { (r.zero_pages) } td { (r.owed_pages) }
                                        td { (workload::units::Rate(r.send_rate as u64)) }
                                        td { (workload::units::Rate(r.dirty_rate.max(0.0) as u64)) }
                                        td { (format!("{:.0} %", r.held_share * 100.0)) }
                                    }
                                }
                            }
                        }
                    }
                    @if m.rounds.len() > ROUNDS {
                        p { (m.rounds.len() - ROUNDS) " more rounds stand in the JSON." }
                    }
                }
            }
        }
    }
}

/// What made the documents.
fn origins(runs: &[Kept]) -> Markup {
    let mut origins: Vec<&Provenance> = Vec::new();
    for kept in runs {
        let Some(provenance) = &kept.run.provenance else { continue };
        let known = |other: &&Provenance| {
            (&other.host, &other.version, &other.command)
                == (&provenance.host, &provenance.version, &provenance.command)
        };
        if !origins.iter().any(known) {
            origins.push(provenance);
        }
    }
    html! {
        section {
            h2 { "Where this comes from" }
            @if origins.is_empty() { p { "The documents do not say." } }
            @for p in origins {
                p {
                    code { (p.command.join(" ")) }
                    br;
                    (p.tool) " " (p.version)
                    @if let Some(commit) = &p.commit { " (" (commit) ")" }
                    " on " (p.host) ", " (p.cpus) " of " (p.cpu) ", " (p.kernel) ", " (p.started)
                }
            }
        }
    }
}

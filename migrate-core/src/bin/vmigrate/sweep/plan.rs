//! What a sweep runs: lists of values, from options or from a TOML file, and every run of them.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use migrate_core::policy::PolicyKind;
use migrate_core::report::SweepCase;
use serde::{Deserialize, Serialize};
use workload::profile::Profile;
use workload::units::{Bytes, Rate, format_duration, parse_duration};

/// Most runs of one sweep.
const RUNS_MAX: usize = 100_000;
/// Most bytes of a plan's file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How fast a guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(super) enum Pace {
    /// So many of what the link carries.
    OfLink(f64),
    Absolute(Rate),
}

impl FromStr for Pace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(share) if share > 0.0 && share <= 1000.0 => Ok(Self::OfLink(share)),
            Ok(_) => Err(format!("'{text}' is no share of a link: it must be above 0")),
            Err(_) => text
                .parse()
                .map(Self::Absolute)
                .map_err(|error| format!("{error}; or a share of the link: 0.5, or 0.1..2.0/0.1")),
        }
    }
}

impl TryFrom<String> for Pace {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Pace> for String {
    fn from(pace: Pace) -> Self {
        pace.to_string()
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Steps of a range are no rounder than this.
            Self::OfLink(share) => {
                let text = format!("{share:.4}");
                f.pad(text.trim_end_matches('0').trim_end_matches('.'))
            }
            Self::Absolute(rate) => f.pad(&rate.0.to_string()).and_then(|()| f.write_str("B/s")),
        }
    }
}

/// Rates as they are typed: `0.1..2.0/0.1,50MB/s`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Paces(pub(super) Vec<Pace>);

impl FromStr for Paces {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut paces = Vec::new();
        for part in text.split(',').map(str::trim) {
            let Some((from, rest)) = part.split_once("..") else {
                paces.push(part.parse()?);
                continue;
            };
            let wrong = || format!("'{part}' is no range: FROM..TO/STEP, for example 0.1..2.0/0.1");
            let (to, step) = rest.split_once('/').ok_or_else(wrong)?;
            let number = |text: &str| text.trim().parse::<f64>().map_err(|_| wrong());
            let (from, to, step) = (number(from)?, number(to)?, number(step)?);
            let steps = ((to - from) / step + 1e-9).floor();
            if !(step > 0.0 && from > 0.0 && (0.0..RUNS_MAX as f64).contains(&steps)) {
                return Err(wrong());
            }
            for number in 0..=steps as usize {
                let share = from + number as f64 * step;
                paces.push(format!("{share:.4}").parse()?);
            }
        }
        Ok(Self(paces))
    }
}

/// The matrix. Each list has one value at least.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) rates: Vec<Pace>,
    pub(super) policies: Vec<PolicyKind>,
    pub(super) workloads: Vec<Profile>,
    pub(super) memories: Vec<Bytes>,
    #[serde(with = "milliseconds")]
    pub(super) downtimes: Vec<Duration>,
    /// What the link is paced to; none for what it gives.
    pub(super) bandwidths: Vec<Option<Rate>>,
    pub(super) seeds: Vec<u64>,
    pub(super) repeat: u32,
}

mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(times: &[Duration], to: S) -> Result<S::Ok, S::Error> {
        let ms: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        ms.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<Duration>, D::Error> {
        let ms = Vec::<f64>::deserialize(from)?;
        let time =
            |ms: f64| Duration::try_from_secs_f64(ms / 1e3).map_err(serde::de::Error::custom);
        ms.into_iter().map(time).collect()
    }
}

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) pace: Pace,
    pub(super) policy: PolicyKind,
    pub(super) workload: Profile,
    pub(super) memory: Bytes,
    pub(super) downtime: Duration,
    pub(super) bandwidth: Option<Rate>,
    pub(super) seed: u64,
    pub(super) repeat: u32,
}

impl Wanted {
    /// How fast the guest writes where the link carries so much.
    pub(super) fn rate(&self, link: Option<f64>) -> Rate {
        match (self.pace, self.link(link)) {
            (Pace::Absolute(rate), _) => rate,
            (Pace::OfLink(share), link) => Rate((share * link.unwrap_or(0.0)).max(1.0) as u64),
        }
    }

    /// What the link carries: what it is paced to, or what was measured.
    fn link(&self, measured: Option<f64>) -> Option<f64> {
        self.bandwidth.map(|rate| rate.0 as f64).or(measured)
    }

    pub(super) fn case(&self, link: Option<f64>) -> SweepCase {
        SweepCase {
            policy: self.policy,
            rate: self.pace.to_string(),
            r: self.link(link).map(|link| match self.pace {
                Pace::OfLink(share) => share,
                Pace::Absolute(rate) => rate.0 as f64 / link,
            }),
            workload: self.workload.to_string(),
            memory: self.memory.0,
            downtime_goal_ms: self.downtime.as_secs_f64() * 1e3,
            bandwidth: self.bandwidth.map(|rate| rate.0),
            seed: self.seed,
            repeat: self.repeat,
        }
    }
}

impl Plan {
    /// How many runs there are.
    fn count(&self) -> Option<usize> {
        self.lists().iter().try_fold(1usize, |all, (_, values)| all.checked_mul(*values))
    }

    /// Every list by name, with how many values it has; the last varies first.
    fn lists(&self) -> [(&'static str, usize); 8] {
        [
            ("repeat", self.repeat as usize),
            ("seeds", self.seeds.len()),
            ("workloads", self.workloads.len()),
            ("memories", self.memories.len()),
            ("bandwidths", self.bandwidths.len()),
            ("downtimes", self.downtimes.len()),
            ("rates", self.rates.len()),
            ("policies", self.policies.len()),
        ]
    }

    /// Every run: the whole matrix, then all of it again, so that what drifts drifts for all.
    pub(super) fn runs(&self) -> Vec<Wanted> {
        (0..self.count().unwrap_or(0)).map(|number| self.run(number)).collect()
    }

    fn run(&self, number: usize) -> Wanted {
        let mut rest = number;
        let mut at = self.lists().map(|(_, values)| values);
        for values in at.iter_mut().rev() {
            let digit = rest % *values;
            rest /= *values;
            *values = digit;
        }
        let [repeat, seed, workload, memory, bandwidth, downtime, rate, policy] = at;
        Wanted {
            pace: self.rates[rate],
            policy: self.policies[policy],
            workload: self.workloads[workload].clone(),
            memory: self.memories[memory],
            downtime: self.downtimes[downtime],
            bandwidth: self.bandwidths[bandwidth],
            seed: self.seeds[seed],
            repeat: repeat as u32 + 1,
        }
    }

    /// Refuses what has no run, or more than anybody waits for.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        for (name, values) in self.lists() {
            anyhow::ensure!(values > 0, "the matrix is empty: {name} has no value");
        }
        anyhow::ensure!(
            self.count().is_some_and(|runs| runs <= RUNS_MAX),
            "the matrix has more than {RUNS_MAX} runs"
        );
        Ok(())
    }

    /// Whether the link must be measured first.
    pub(super) fn asks_for_the_link(&self) -> bool {
        self.bandwidths.contains(&None)
            && self.rates.iter().any(|pace| matches!(pace, Pace::OfLink(_)))
    }
}

/// A value of a plan's file: one, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(Value),
    Several(Vec<Value>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Whole(u64),
    Number(f64),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Whole(number) => number.fmt(f),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// Lists as they are typed; what is not said is left to the defaults.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rates: Option<Values>,
    policies: Option<Values>,
    workloads: Option<Values>,
    memories: Option<Values>,
    downtimes: Option<Values>,
    bandwidths: Option<Values>,
    seeds: Option<Values>,
    repeat: Option<u32>,
}

/// Reads the plan in a file; what it does not say is as in `base`.
pub(super) fn read(path: &Path, base: Plan) -> anyhow::Result<Plan> {
    let size =
        std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    anyhow::ensure!(
        size.is_file() && size.len() <= FILE_BYTES_MAX,
        "{} is no plan: a TOML file of at most {FILE_BYTES_MAX} bytes",
        path.display()
    );
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    of_text(&text, base).with_context(|| format!("plan {}", path.display()))
}

fn of_text(text: &str, base: Plan) -> anyhow::Result<Plan> {
    let file: File = toml::from_str(text)?;
    let paces = file.rates.map(|rates| {
        let texts: Vec<String> = texts(rates);
        texts.join(",").parse::<Paces>().map_err(|e| anyhow::anyhow!("rates: {e}"))
    });
    Ok(Plan {
        rates: paces.transpose()?.map_or(base.rates, |paces| paces.0),
        policies: list("policies", file.policies, str::parse)?.unwrap_or(base.policies),
        workloads: list("workloads", file.workloads, Profile::from_argument)?
            .unwrap_or(base.workloads),
        memories: list("memories", file.memories, str::parse)?.unwrap_or(base.memories),
        downtimes: list("downtimes", file.downtimes, parse_duration)?.unwrap_or(base.downtimes),
        bandwidths: list("bandwidths", file.bandwidths, |text| text.parse().map(Some))?
            .unwrap_or(base.bandwidths),
        seeds: list("seeds", file.seeds, str::parse)?.unwrap_or(base.seeds),
        repeat: file.repeat.unwrap_or(base.repeat),
    })
}

fn texts(values: Values) -> Vec<String> {
    match values {
        Values::One(value) => vec![value.to_string()],
        Values::Several(values) => values.iter().map(ToString::to_string).collect(),
    }
}

fn list<T, E: fmt::Display>(
    name: &str,
    values: Option<Values>,
    parse: impl Fn(&str) -> Result<T, E>,
) -> anyhow::Result<Option<Vec<T>>> {
    let Some(values) = values else { return Ok(None) };
    let parsed = texts(values)
        .iter()
        .map(|text| parse(text).map_err(|e| anyhow::anyhow!("{name}: {e}")))
        .collect::<anyhow::Result<_>>()?;
    Ok(Some(parsed))
}

impl fmt::Display for Plan {
    /// What differs between its runs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = vec![format!("{} rates", self.rates.len())];
        let several = |name: &str, values: Vec<String>| match &values[..] {
            [] => None,
            [one] => Some(one.clone()),
            more => Some(format!("{} {name}", more.len())),
        };
        let policies = self.policies.iter().map(|p| p.name().to_owned()).collect();
        said.extend(several("policies", policies));
        said.extend(several("workloads", self.workloads.iter().map(ToString::to_string).collect()));
        said.extend(several("memories", self.memories.iter().map(ToString::to_string).collect()));
        let downtimes =
            self.downtimes.iter().map(|time| format!("{} goal", format_duration(*time)));
        said.extend(several("goals", downtimes.collect()));
        let bandwidths = self.bandwidths.iter().flatten().map(|rate| rate.as_bits());
        said.extend(several("bandwidths", bandwidths.collect()));
        if self.seeds.len() > 1 {
            said.push(format!("{} seeds", self.seeds.len()));
        }
        if self.repeat > 1 {
            said.push(format!("{} times", self.repeat));
        }
        f.write_str(&said.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Plan {
        Plan {
            rates: vec![Pace::OfLink(0.5)],
            policies: vec![PolicyKind::Adaptive],
            workloads: vec!["stream".parse().unwrap()],
            memories: vec![Bytes(1 << 20)],
            downtimes: vec![Duration::from_millis(300)],
            bandwidths: vec![None],
            seeds: vec![1],
            repeat: 1,
        }
    }

    #[test]
    fn rates_are_shares_of_the_link_or_their_own() {
        let texts = |text: &str| {
            text.parse::<Paces>().map(|p| p.0.iter().map(Pace::to_string).collect::<Vec<_>>())
        };
        assert_eq!(
            texts("0.1,0.5..1.0/0.25,50MB/s").unwrap().join(" "),
            "0.1 0.5 0.75 1 50000000B/s"
        );
        assert_eq!(texts("0.1..2.0/0.1").unwrap().len(), 20);
        for wrong in ["0", "-1", "nan", "1..2", "2..1/0.5", "1..2/0", "0.1..9e9/0.0001", "fast", ""]
        {
            assert!(texts(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_plan_of_a_file_is_read_strictly() {
        let text = "rates = ['0.1..0.3/0.1', 1]\npolicies = 'precopy'\nmemories = ['1GiB']\nrepeat = 2\n\
                    downtimes = ['50ms', '1s']\nbandwidths = '1gbit'\nseeds = [1, 2]\n";
        let plan = of_text(text, base()).unwrap();
        assert_eq!(plan.runs().len(), 4 * 2 * 2 * 2);
        assert_eq!(plan.bandwidths, vec![Some(Rate(125_000_000))]);
        plan.check().unwrap();
        for (text, part) in [
            ("rate = [1]", "unknown field"),
            ("rates = []", "rates: "),
            ("policies = ['fast']", "policies"),
            ("memories = ['much']", "memories"),
            ("repeat = -1", "repeat"),
        ] {
            let refused = of_text(text, base()).map(|_| ()).unwrap_err();
            assert!(format!("{refused:#}").contains(part), "{text}: {refused:#}");
        }
        let empty = Plan { seeds: Vec::new(), ..base() };
        assert!(empty.check().unwrap_err().to_string().contains("seeds has no value"));
        let endless = Plan { repeat: u32::MAX, ..base() };
        assert!(endless.check().is_err());
    }

    #[test]
    fn a_plan_reads_back() {
        let plan = Plan { repeat: 3, ..base() };
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }

    #[test]
    fn a_rate_follows_the_link() {
        let plan = base();
        let run = &plan.runs()[0];
        assert_eq!(run.rate(Some(200e6)), Rate(100_000_000));
        assert_eq!(run.case(Some(200e6)).r, Some(0.5));
        assert_eq!((run.repeat, run.seed), (1, 1));
        let paced = Wanted { bandwidth: Some(Rate(50_000_000)), ..run.clone() };
        assert_eq!(paced.rate(Some(200e6)), Rate(25_000_000));
    }
}

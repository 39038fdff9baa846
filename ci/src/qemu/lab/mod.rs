//! `ci qemu`: real hypervisors at work. A VM whose init is the workload is migrated by QEMU, in any
//! of QEMU's ways, between two network namespaces, and judged from inside and outside.

mod bed;
mod evidence;
pub(crate) mod libvirt;
pub(crate) mod row;
mod sabotage;
mod side_by_side;

use std::io::Write;
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use workload::exit;
use workload::journal::Journal;
use workload::units::{Rate, parse_duration};

use super::migration::{self, Claim, Limits, MODES, Mode};
use bed::{Bed, Plan};
use evidence::Evidence;
use row::{Table, Told};
use sabotage::{Earlier, Sabotage};

#[derive(ClapArgs)]
#[command(after_help = "Examples:\n  \
    cargo run --release -p ci -- qemu --mode all\n  \
    cargo run --release -p ci -- qemu --mode postcopy,multifd-zstd --rate 16MB/s\n  \
    cargo run --release -p ci -- qemu --sabotage\n  \
    cargo run --release -p ci -- qemu --side-by-side\n  \
    cargo run --release -p ci -- qemu --mode plain --memory-kib 262144    (see below)\n\n\
    Modes: plain, auto-converge, multifd2, multifd4, multifd-zstd, xbzrle, postcopy,\n\
    postcopy-preempt, tls, multifd-tls, postcopy-tls, cancel-retry, two-hops; or all.\n\n\
    Emulated, QEMU 7.2 forgets writes where memory is a multiple of 256 KiB; by default a VM\n\
    therefore has two pages more. --memory-kib takes any size, and shows what that does.")]
pub(crate) struct Args {
    /// Ways to migrate, or all
    #[arg(long, value_delimiter = ',', default_value = "plain")]
    mode: Vec<String>,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    told: Told,
    /// Plant faults into the destination before it runs, one kind after the other, and none
    #[arg(long, conflicts_with = "side_by_side")]
    sabotage: bool,
    /// The same migration by our engine and by QEMU, in one table
    #[arg(long)]
    side_by_side: bool,
}

/// What every VM of the lab is asked for.
#[derive(ClapArgs, Clone, Debug)]
pub(crate) struct Common {
    /// Megabytes of memory of the VM, up to 2046
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(160..2047))]
    memory_mib: u64,
    /// The same in kilobytes, exactly
    #[arg(long, conflicts_with = "memory_mib")]
    memory_kib: Option<u64>,
    /// Megabytes that the workload inside keeps writing
    #[arg(long, default_value_t = 96)]
    region_mib: u64,
    /// What it writes
    #[arg(long, default_value = "stream,record=16KiB")]
    workload: String,
    /// How fast
    #[arg(long, default_value = "8MB/s")]
    rate: Rate,
    /// What the link is shaped to
    #[arg(long, default_value = "1gbit")]
    link: Rate,
    /// Most downtime that QEMU may take
    #[arg(long, default_value = "300ms", value_parser = parse_duration)]
    downtime: Duration,
    /// A migration that takes longer is called off
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    time_limit: Duration,
}

impl Common {
    fn plan(&self) -> anyhow::Result<Plan> {
        let plan = Plan {
            memory_kib: self.memory_kib.unwrap_or(Plan::kib_of(self.memory_mib)),
            region_mib: self.region_mib,
            workload: self.workload.clone(),
            rate: self.rate,
            limits: Limits { bytes_per_s: 1 << 30, downtime: self.downtime, time: self.time_limit },
        };
        anyhow::ensure!(
            plan.memory_kib < 2 << 20 && plan.memory_kib >= (plan.region_mib + 64) << 10,
            "a VM of {} KiB has no room for a region of {} MiB and 64 MiB of system; it has up to \
             2047 MiB",
            plan.memory_kib,
            plan.region_mib
        );
        Ok(plan)
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let plan = args.common.plan()?;
    if args.side_by_side {
        return side_by_side::run(plan);
    }
    let bed = Bed::new(plan, args.common.link)?;
    match args.sabotage {
        true => sabotaged(&bed),
        false => modes(&bed, &args.mode, &args.told),
    }
}

/// What is tried of a mode.
#[derive(Clone, Copy)]
enum Course {
    Once(Mode),
    /// Called off in the middle, and done with a new destination.
    CancelAndRetry,
    /// On to a third machine.
    TwoHops,
}

const COURSES: [(&str, Course); 2] =
    [("cancel-retry", Course::CancelAndRetry), ("two-hops", Course::TwoHops)];

fn courses(names: &[String]) -> anyhow::Result<Vec<(String, Course)>> {
    let mut courses = Vec::new();
    for name in names {
        if name == "all" {
            courses.extend(MODES.map(|mode| (mode.name.to_owned(), Course::Once(mode))));
            courses.extend(COURSES.map(|(name, course)| (name.to_owned(), course)));
        } else if let Some((name, course)) = COURSES.iter().find(|(known, _)| known == name) {
            courses.push(((*name).to_owned(), *course));
        } else {
            courses.push((name.clone(), Course::Once(Mode::named(name)?)));
        }
    }
    Ok(courses)
}

fn modes(bed: &Bed, names: &[String], told: &Told) -> anyhow::Result<u8> {
    let courses = courses(names)?;
    let start = Instant::now();
    let title = format!(
        "{} KiB, {} MiB of it written by {} at {}",
        bed.plan.memory_kib, bed.plan.region_mib, bed.plan.workload, bed.plan.rate
    );
    let mut table = Table::begin(told, "qemu", super::version(), &title)?;
    for (name, course) in courses {
        crate::interrupted()?;
        let row = one(bed, &name, course);
        table.add(&name, row)?;
    }
    table.note(&format!("{:.0} s in all", start.elapsed().as_secs_f64()))?;
    Ok(table.end())
}

fn print_header(out: &mut impl Write) -> std::io::Result<()> {
    writeln!(
        out,
        "{:<17} {:>7} {:>8} {:>7} {:>7} {:>6} {:>9}  {:<12} {:<12} {:<12} verdict",
        "mode", "total", "claimed", "felt", "seen", "passes", "bytes", "image", "inside", "later"
    )
}

fn print(
    out: &mut impl Write,
    name: &str,
    claim: &Claim,
    evidence: &Evidence,
) -> std::io::Result<()> {
    let image = evidence.image.as_ref().map_or("-", |look| look.verdict.as_str());
    let felt = evidence.felt_ms.map_or("none".to_owned(), |felt| format!("{felt:.0}"));
    writeln!(
        out,
        "{name:<17} {:>7.0} {:>8.0} {felt:>7} {:>7.0} {:>6} {:>9}  {image:<12} {:<12} {:<12} {}",
        claim.total_ms,
        claim.downtime_ms,
        evidence.seen_ms,
        claim.rounds,
        format!("{:.1} MB", claim.bytes as f64 / 1e6),
        evidence.inside.verdict,
        evidence.later.verdict,
        evidence.verdict()
    )?;
    for (side, look) in [
        ("image", evidence.image.as_ref()),
        ("inside", Some(&evidence.inside)),
        ("later", Some(&evidence.later)),
        ("image, later", Some(&evidence.image_later)),
    ] {
        for fault in look.iter().flat_map(|look| look.faults.iter().take(3)) {
            writeln!(out, "    {side}: {fault}")?;
        }
    }
    for breach in &evidence.breaches {
        writeln!(out, "    heartbeats: {breach}")?;
    }
    Ok(())
}

fn one(bed: &Bed, name: &str, course: Course) -> anyhow::Result<(Claim, Evidence)> {
    let plain = Mode::named("plain")?;
    let mode = match course {
        Course::Once(mode) => mode,
        Course::CancelAndRetry | Course::TwoHops => plain,
    };
    let (mut life, mut source) = bed.boot(name)?;
    if let Course::CancelAndRetry = course {
        cancel(bed, &mut life, &mut source)?;
    }
    let mut began_ns = evidence::now_ns();
    let (mut vm, mut claim) = bed.migrate(&mut life, &mode, &mut source)?;
    // It has given its guest away; its memory is wanted.
    drop(source);
    if let Course::TwoHops = course {
        vm.machine.qmp.run("cont", serde_json::json!({}))?;
        vm.port.await_beats(&life.gathered, 50)?;
        began_ns = evidence::now_ns();
        let mut middle = vm;
        (vm, claim) = bed.migrate(&mut life, &mode, &mut middle)?;
    }
    let evidence = evidence::gather(vm, &life, !mode.postcopy, began_ns, None)?;
    Ok((claim, evidence))
}

/// Begins a migration and calls it off; the guest must be whole where it is.
fn cancel(bed: &Bed, life: &mut bed::Life, source: &mut super::vm::Vm) -> anyhow::Result<()> {
    let mode = Mode::named("plain")?;
    let slow = Limits { bytes_per_s: 8 << 20, ..bed.plan.limits };
    let mut shadow = bed.shadow(life, &mode)?;
    bed.begin(life, &mode, &slow, source, &mut shadow)?;
    std::thread::sleep(Duration::from_millis(700));
    let claim = migration::cancel(&mut source.machine.qmp)?;
    anyhow::ensure!(claim.status == "cancelled", "QEMU says {} when told to stop", claim.status);
    // A destination that was left alone ends, or waits for ever; either way it is of no more use,
    // and the next one stands in its place.
    drop(shadow);
    life.take_back();
    source.port.ask("pause", "paused at")?;
    let look = evidence::scan(&mut source.port)?;
    anyhow::ensure!(
        look.verdict == "PROVEN",
        "after cancelling: {} {:?}",
        look.verdict,
        look.faults
    );
    source.port.ask("resume", "resumed").map(drop)
}

/// Every kind of fault in turn, and none.
fn sabotaged(bed: &Bed) -> anyhow::Result<u8> {
    let plain = Mode::named("plain")?;
    let mut out = std::io::stdout();
    let mut code = exit::PROVEN;
    let kinds = Sabotage::ALL.into_iter().map(Some).chain([None]);
    for (number, kind) in kinds.enumerate() {
        crate::interrupted()?;
        let (mut life, mut source) = bed.boot(&format!("sabotage{number}"))?;
        let earlier = Earlier::of(&mut source, &life)?;
        // Long enough for pages to be written that the earlier moment shows unwritten.
        std::thread::sleep(Duration::from_secs(2));
        let began_ns = evidence::now_ns();
        let (vm, _) = bed.migrate(&mut life, &plain, &mut source)?;
        drop(source);
        let planted = match kind {
            Some(kind) => {
                let journal = Journal::read(&life.journal)?;
                Some(sabotage::plant(kind, &vm.machine.ram, &earlier, &journal)?)
            }
            None => None,
        };
        let evidence = evidence::gather(vm, &life, true, began_ns, Some(&earlier.map))?;
        let image = evidence.image.clone().unwrap_or_default();
        let good = match (kind, &planted) {
            (Some(kind), Some(planted)) => {
                let named = |look: &evidence::Look, class: &str| {
                    look.faults.iter().any(|f| f.contains(class) && planted.is_named(f))
                };
                named(&evidence.inside, kind.class_inside()) && named(&image, kind.class_image())
            }
            _ => evidence.verdict() == "PROVEN",
        };
        if !good {
            code = exit::WRONG;
        }
        writeln!(
            out,
            "{:<22} {}",
            kind.map_or("nothing", Sabotage::name),
            if good { "as it should be" } else { "NOT AS IT SHOULD BE" }
        )?;
        if let Some(planted) = &planted {
            writeln!(out, "    planted in region page {:?}", planted.pages)?;
        }
        for (side, look) in [("inside", &evidence.inside), ("image", &image)] {
            writeln!(out, "    {side}: {}", look.verdict)?;
            for fault in look.faults.iter().take(3) {
                writeln!(out, "        {fault}")?;
            }
        }
        for breach in &evidence.breaches {
            writeln!(out, "    heartbeats: {breach}")?;
        }
    }
    Ok(code)
}

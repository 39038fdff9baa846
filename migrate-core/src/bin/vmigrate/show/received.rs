//! One guest that came, as `receive` tells it.

use std::io::{self, Write};

use migrate_core::memory::PAGE_BYTES;
use migrate_core::report::{ReceiveReport, StatusKind};
use workload::say::Out;
use workload::units::Bytes;

use super::{COLUMNS, Detail, time, wrapped};

pub(crate) fn print(out: &mut Out, report: &ReceiveReport, detail: Detail) -> io::Result<()> {
    let (Some(t), Some(peer), Some(epoch)) = (&report.testimony, &report.peer, report.epoch) else {
        let from = report.peer.as_ref().map_or(String::new(), |peer| format!(" from {peer}"));
        let here = match report.status.kind {
            StatusKind::Unresolved => "",
            _ => "; nothing runs here",
        };
        let head = format!("NOT RECEIVED{from}: {}{here}", report.status.text);
        return write!(out, "{}", wrapped(&head, "", "  ", COLUMNS));
    };
    let memory = Bytes(t.before_resume.lines * workload::LINE_BYTES);
    let head = format!(
        "RECEIVED {memory} from {peer}, host {} of this guest, memory {}",
        epoch + 1,
        report.memory
    );
    write!(out, "{}", wrapped(&head, "", "  ", COLUMNS))?;
    let again = match &t.after_run {
        Some(_) => "before it ran and again after",
        None => "before it ran, and not again",
    };
    writeln!(out, "  scanned    {} lines {again}", t.before_resume.lines)?;
    writeln!(out, "  came in    {} of pages", Bytes(report.pages * PAGE_BYTES))?;
    if let Some(on) = &report.passed_on {
        let to = on.link.as_ref().map_or("the next host", |link| link.to.as_str());
        let said = match (on.migrated, on.last()) {
            (true, Some(m)) => format!(
                "to {to} in {}, downtime {}, memory {}",
                time(m.migration_ms),
                time(m.downtime.total_ms),
                on.memory
            ),
            _ => format!("NOT to {to}: {}; it ended here", on.status.text),
        };
        write!(out, "{}", wrapped(&said, "  passed on  ", "             ", COLUMNS))?;
        let failed = on.attempts.iter().filter(|m| !m.is_done()).count();
        if failed > 0 {
            writeln!(out, "             after {failed} attempts that failed")?;
        }
    }
    for reason in &report.reasons {
        write!(out, "{}", wrapped(reason, "  reason     ", "             ", COLUMNS))?;
    }
    if detail == Detail::All {
        writeln!(out, "  migration  {}", report.migration.as_deref().unwrap_or("-"))?;
        writeln!(out, "  writers    were at operations {:?}", t.before_resume.watermarks)?;
        if let Some(after) = &t.after_run {
            writeln!(out, "             and ran on to {:?}", after.watermarks)?;
        }
    }
    Ok(())
}

//! What was left to send over the time of a migration, as one line of blocks.

use migrate_core::report::MigrationReport;

/// Eighths of a block, and nothing.
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The same where a terminal has no others.
const LETTERS: [char; 9] = [' ', '.', ':', '-', '=', '+', '*', '#', '@'];

/// The line, at most `columns` wide; empty where nothing was sent in rounds.
pub(crate) fn left_to_send(m: &MigrationReport, columns: usize) -> String {
    let levels = if has_blocks() { BLOCKS } else { LETTERS };
    let points = points(m);
    let Some((end, _)) = points.last().copied().filter(|(end, _)| *end > 0.0) else {
        return String::new();
    };
    let most = points.iter().map(|(_, left)| *left).fold(1.0, f64::max);
    // One round is one block at least.
    let columns = columns.min(points.len().max(4) * 4);
    let at = |column: usize| {
        let time = (column as f64 + 0.5) / columns as f64 * end;
        let after = points.partition_point(|(at, _)| *at < time).clamp(1, points.len() - 1);
        let ((t0, left0), (t1, left1)) = (points[after - 1], points[after]);
        let share = if t1 > t0 { ((time - t0) / (t1 - t0)).clamp(0.0, 1.0) } else { 1.0 };
        let left = left0 + (left1 - left0) * share;
        levels[((left / most * 8.0).ceil() as usize).clamp(1, 8)]
    };
    (0..columns).map(at).collect()
}

/// Milliseconds, and pages left then.
fn points(m: &MigrationReport) -> Vec<(f64, f64)> {
    let mut points = vec![(0.0, (m.memory_pages - m.untouched_pages) as f64)];
    points.extend(m.rounds.iter().map(|r| (r.start_ms + r.elapsed_ms, r.owed_pages as f64)));
    points
}

/// Whether the surroundings say nothing against characters beyond ASCII.
fn has_blocks() -> bool {
    let said = ["LC_ALL", "LC_CTYPE", "LANG"].iter().filter_map(|name| std::env::var(name).ok());
    let locale = said.into_iter().find(|value| !value.is_empty());
    locale.is_none_or(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

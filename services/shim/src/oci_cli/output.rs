//! What the command says: results on standard output, errors on standard error and in the log.

use std::io::Write;
use std::process::ExitCode;

use super::CliError;
use super::arguments::Globals;

/// Prints a result.
pub(super) fn print(text: &str) -> Result<u8, CliError> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| {
        if text.ends_with('\n') {
            Ok(())
        } else {
            out.write_all(b"\n")
        }
    });
    written
        .and_then(|()| out.flush())
        .map_err(|error| CliError::file("write", "standard output".as_ref(), error))?;
    Ok(0)
}

/// Prints a warning, in the log too.
pub(super) fn warn(globals: &Globals, line: &str) {
    report(globals, "warning", line);
}

/// Notes for `--debug` what only somebody who looks for a fault wants to know: in the log, if there is one, and else on
/// standard error, which is the program's too.
pub(super) fn debug(globals: &Globals, line: impl FnOnce() -> String) {
    if !globals.debug {
        return;
    }
    let line = line();
    if globals.log.is_none() {
        eprintln!("gantry-oci: debug: {line}");
    }
    append(globals, "debug", &line);
}

/// Prints an error, in the log too, where the engines look for it.
pub(super) fn fail(globals: &Globals, error: &CliError) -> ExitCode {
    report(globals, "error", &error.line());
    ExitCode::FAILURE
}

fn report(globals: &Globals, level: &str, line: &str) {
    eprintln!("gantry-oci: {level}: {line}");
    append(globals, level, line);
}

/// An entry of the log, if there is one.
fn append(globals: &Globals, level: &str, line: &str) {
    if let Some(path) = &globals.log {
        let now = now();
        let entry = if globals.log_json {
            serde_json::json!({"level": level, "msg": line, "time": now}).to_string()
        } else {
            format!("time=\"{now}\" level={level} msg={line:?}")
        };
        let opened = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path);
        if let Ok(mut file) = opened {
            let _ = file.write_all(format!("{entry}\n").as_bytes());
        }
    }
}

/// RFC 3339, in UTC.
pub(super) fn now() -> String {
    timestamp(
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
    )
}

/// RFC 3339, in UTC, of seconds since 1970.
pub(super) fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a date, counting years from March: the proleptic Gregorian calendar repeats every 146097 days.
    let shifted = days as i64 + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(timestamp(1_700_000_000), "2023-11-14T22:13:20Z");
    }
}

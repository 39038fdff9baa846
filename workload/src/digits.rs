//! Numbers that stand in files and reports as so many hexadecimal digits in small letters, and in no
//! other way.

/// Sixteen digits as they are written here, and nothing else that could be read as a number.
pub(crate) fn hexadecimal(text: &str) -> Option<u64> {
    of_length(text, 16)
}

/// The same of another length.
pub(crate) fn of_length(text: &str, digits: usize) -> Option<u64> {
    let written =
        text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    written.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// How a type around one number is written, and read back: as `$digits` digits.
macro_rules! written_in_digits {
    ($name:ident, $number:ty, $digits:literal, $what:literal) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:0width$x}", self.0, width = $digits)
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                let number = $crate::digits::of_length(text, $digits);
                let number = number.and_then(|number| <$number>::try_from(number).ok());
                number.map(Self).ok_or_else(|| {
                    format!(
                        "'{text}' names no {}: it takes {} hexadecimal digits, in small letters",
                        $what, $digits
                    )
                })
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "pattern": concat!("^[0-9a-f]{", $digits, "}$"),
                })
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(named: $name) -> Self {
                named.to_string()
            }
        }
    };
}

pub(crate) use written_in_digits;

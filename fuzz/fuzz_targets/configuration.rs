//! Any bytes as `PYTHONMALLOC`, `PYTHONDEVMODE` and `PYMEM_DEBUG`: accepted by the rule or refused with an error that prints.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memdebug::Options;
use pymem_domains::{AllocatorName, Preconfig, Profile};

fuzz_target!(|input: (&[u8], &[u8], bool)| {
    let (value, dev, use_environment) = input;
    let profile = Profile::NEWEST;
    let config = Preconfig {
        pythonmalloc: Some(value),
        pythondevmode: Some(dev),
        use_environment,
        ..Preconfig::default()
    };
    match config.choose(&profile) {
        Ok(Some(name)) if use_environment && !value.is_empty() => {
            assert_eq!(name.as_str().as_bytes(), value)
        }
        Ok(Some(name)) => assert_eq!(name, AllocatorName::Debug),
        Ok(None) => assert!(!use_environment || (value.is_empty() && dev.is_empty())),
        Err(error) => {
            assert!(!error.to_string().is_empty() && use_environment && !value.is_empty())
        }
    }
    if let Ok(text) = str::from_utf8(value)
        && let Err(error) = text.parse::<Options>()
    {
        assert!(!error.to_string().is_empty());
    }
});

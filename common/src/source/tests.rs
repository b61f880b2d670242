//! Addresses, JSON and bounds of source specifications.

use std::path::Path;

use super::{
    HttpAuth, HttpsSource, NbdAddress, NbdSource, ServerTrust, SourceFormat, SourceSpec,
    uuid_digits,
};
use crate::secret::Secret;

fn nbd(text: &str) -> NbdSource {
    match SourceSpec::parse(text).unwrap() {
        SourceSpec::Nbd(source) => source,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn nbd_addresses_say_where_and_what() {
    let tcp = |host: &str, port| NbdAddress::Tcp { host: host.into(), port };
    for (text, address, export) in [
        ("nbd://host", tcp("host", 10_809), ""),
        ("nbd://host:1/", tcp("host", 1), ""),
        ("nbd://10.0.0.1:99/a/b%20c", tcp("10.0.0.1", 99), "a/b c"),
        ("nbd://[::1]:99/x", tcp("::1", 99), "x"),
        ("nbd://[::1]/x", tcp("::1", 10_809), "x"),
        ("nbd+unix:///disk?socket=/run/s%3F", NbdAddress::Unix { path: "/run/s?".into() }, "disk"),
    ] {
        let source = nbd(text);
        assert_eq!((source.address, source.export.as_str()), (address, export), "{text}");
        assert_eq!(source.tls, None);
    }
    assert_eq!(nbd("nbd://h/?connections=3").connections, 3);
    assert_eq!(nbd("nbd://[::1]/x").label(), "nbd://[::1]:10809/x");
    let tls = nbd("nbds://h/x?tls-certificates=/pki&tls-hostname=n").tls.unwrap();
    assert_eq!(tls.ca_file.as_deref(), Some(Path::new("/pki/ca-cert.pem")));
    assert_eq!(tls.server_name.as_deref(), Some("n"));
}

#[test]
fn what_is_no_nbd_address_is_a_path_or_refused() {
    for text in ["disk.raw", "/dev/sda", "a:b", "nbd:/x", "http://x/"] {
        let expected = SourceSpec::Path { path: text.into(), format: SourceFormat::Auto };
        assert_eq!(SourceSpec::parse(text).unwrap(), expected);
    }
    for text in [
        "nbd://",
        "nbd://:1/",
        "nbd://h:x/",
        "nbd://h:70000/",
        "nbd://[::1/",
        "nbd://[::1]9/",
        "nbd+unix:///e",
        "nbd+unix://h/e?socket=/s",
        "nbd://h/?socket=/s",
        "nbd://h/?wat=1",
        "nbd://h/%ff",
        "nbds://h/x",
    ] {
        let error = SourceSpec::parse(text).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn json_is_read_as_written_and_debug_shows_no_secret() {
    let https = SourceSpec::Https(HttpsSource {
        host: "esx".into(),
        port: 443,
        trust: ServerTrust::Thumbprint("AA:BB".into()),
        path_and_query: "/folder/a-flat.vmdk?dsName=x".into(),
        size_bytes: 1 << 30,
        auth: HttpAuth::Basic { user: "root".into(), password: Secret::new("hunter2") },
        connections: 0,
        in_flight: 0,
    });
    for spec in [
        SourceSpec::parse("nbd+unix:///e?socket=/s").unwrap(),
        SourceSpec::path("x"),
        SourceSpec::DeviceByUuid { uuid: "6000C29b-0".into(), folder: None },
        https.clone(),
    ] {
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<SourceSpec>(&json).unwrap(), spec, "{json}");
    }
    let shown = format!("{https:?} {}", https.label());
    assert!(!shown.contains("hunter2") && !shown.contains("dsName=x "), "{shown}");
    let typed = r#"{"kind":"path","path":"/a","format":"vmdk"}"#;
    let expected = SourceSpec::Path { path: "/a".into(), format: SourceFormat::Vmdk };
    assert_eq!(serde_json::from_str::<SourceSpec>(typed).unwrap(), expected);
    assert!(serde_json::from_str::<SourceSpec>(r#"{"kind":"path","pth":"/a"}"#).is_err());
}

#[test]
fn bounds_are_checked() {
    let ok = SourceSpec::parse("nbd://h/x").unwrap();
    ok.check().unwrap();
    let mut long = nbd("nbd://h/x");
    long.export = "x".repeat(5000);
    SourceSpec::Nbd(long).check().unwrap_err();
    let uuid = |text: &str| SourceSpec::DeviceByUuid { uuid: text.into(), folder: None };
    uuid("6000C293-5d0a-ffce-8c4d-000000000001").check().unwrap();
    uuid("60 00 C2 93 5d 0a ff ce-8c 4d 00 00 00 00 00 01").check().unwrap();
    uuid("6000C293").check().unwrap_err();
    assert_eq!(
        uuid_digits("6000C293-5d0a-ffce-8c4d-000000000001").as_deref(),
        Some("6000c2935d0affce8c4d000000000001")
    );
    SourceSpec::path("").check().unwrap_err();
}

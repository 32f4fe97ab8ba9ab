//! An authority made with the program openssl, for lists of revoked certificates (CRL).

use std::path::Path;

use super::{Tool, keep_private};

/// An authority of openssl, whose lists of revoked certificates have the times that a test wants.
pub struct OpensslAuthority<'a>(&'a Path);

impl<'a> OpensslAuthority<'a> {
    /// Creates the authority in a directory: `ca.crt`, and the certificates `server`, `one`, and `two`, which is revoked.
    pub async fn new(dir: &'a Path) -> Self {
        let this = Self(dir);
        let config = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\ncrlnumber=number\nnew_certs_dir=.\n\
                      certificate=ca.crt\nprivate_key=ca.key\ndefault_md=sha256\ndefault_days=90\npolicy=p\n\
                      crl_extensions=c\n[p]\ncommonName=supplied\n[c]\nauthorityKeyIdentifier=keyid\n";
        for (name, text) in [
            ("ca.cnf", config),
            ("index", ""),
            ("serial", "01"),
            ("number", "01"),
        ] {
            std::fs::write(dir.join(name), text).expect("the file can be written");
        }
        let new = "req -x509 -newkey rsa:2048 -nodes -days 90 -subj /CN=authority -keyout ca.key -out ca.crt";
        this.run(new).await;
        for (of, extension) in [
            ("server", "subjectAltName=DNS:localhost"),
            ("one", ""),
            ("two", ""),
        ] {
            let extension = format!("basicConstraints=CA:false\n{extension}\n");
            std::fs::write(dir.join("ext"), extension).expect("the file can be written");
            this.run(&format!(
                "req -newkey rsa:2048 -nodes -subj /CN={of} -keyout {of}.key -out {of}.csr"
            ))
            .await;
            this.run(&format!(
                "ca -batch -notext -config ca.cnf -extfile ext -in {of}.csr -out {of}.crt"
            ))
            .await;
            keep_private(&dir.join(format!("{of}.key")));
        }
        this.run("ca -config ca.cnf -revoke two.crt").await;
        this
    }

    async fn run(&self, args: &str) {
        let args = format!("cd {} && openssl {args} 2>&1", self.0.display());
        let tool = Tool::at("sh".into()).args(["-c", &*args]);
        let done = tool.run().await;
        done.unwrap_or_else(|error| panic!("{args}: {error}"));
    }

    /// Writes a list that begins and ends so many days from now; returns its end, in seconds since 1970.
    pub async fn list(&self, begin: i64, end: i64) -> f64 {
        let now = time::OffsetDateTime::now_utc();
        let text = |days| {
            let at: time::OffsetDateTime = now + time::Duration::days(days);
            let (date, time) = (at.date(), at.time());
            let date = (date.year(), u8::from(date.month()), date.day());
            let time = (time.hour(), time.minute(), time.second());
            format!(
                "{:04}{:02}{:02}{:02}{:02}{:02}Z",
                date.0, date.1, date.2, time.0, time.1, time.2
            )
        };
        let (begin, text) = (text(begin), text(end));
        self.run(&format!(
            "ca -config ca.cnf -gencrl -crl_lastupdate {begin} -crl_nextupdate {text} -out new.crl"
        ))
        .await;
        let file = |name| self.0.join(name);
        std::fs::rename(file("new.crl"), file("crl")).expect("it is ours");
        (now + time::Duration::days(end)).unix_timestamp() as f64
    }
}

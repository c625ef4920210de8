//! Each way in which a server and a client can fail to agree, against a server of rustls's.

use std::rc::Rc;
use std::sync::Arc;

use rcgen::{
    date_time_ymd, BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose,
    IsCa, KeyPair,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{spawn_local, LocalSet};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{version, ServerConfig, SupportedProtocolVersion};
use tokio_rustls::TlsAcceptor;

use super::Connector;
use crate::config::{pem, PemFile, Secret, ServerNameIndication, Ssl, Verify};
use crate::connection::io_why;
use crate::error::{TlsFailure, Why};

type Authority = CertifiedIssuer<'static, KeyPair>;

/// A certificate and its key, PEM.
struct Identity {
    certificate: String,
    key: String,
}

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn issue(by: &Authority, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Identity {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    Identity {
        certificate: params.signed_by(&key, by).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

/// A server's certificate for `localhost` and its address.
fn local(by: &Authority) -> Identity {
    issue(by, &["localhost", "127.0.0.1"], |_| {})
}

/// What `openssl req -x509` makes: a certificate that is its own authority.
fn home_made(change: impl FnOnce(&mut CertificateParams)) -> Identity {
    let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    Identity {
        certificate: params.self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

/// Trusts `authorities`, PEM.
fn trusting(authorities: &str) -> Ssl {
    Ssl {
        enable: true,
        cacertfile: file(authorities),
        ..Ssl::default()
    }
}

fn file(pem: &str) -> Option<PemFile> {
    Some(PemFile {
        path: "/x".into(),
        contents: Secret::new(pem),
    })
}

fn named(name: ServerNameIndication, ssl: Ssl) -> Ssl {
    Ssl {
        server_name_indication: name,
        ..ssl
    }
}

fn server(
    identity: &Identity,
    clients: Option<&Authority>,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let provider = Arc::new(ring::default_provider());
    let own = pem::identity(identity.certificate.as_bytes(), identity.key.as_bytes());
    let own = own.ok().unwrap();
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap();
    let builder = match clients {
        Some(authority) => {
            let trusted = pem::authorities(authority.pem().as_bytes()).unwrap();
            let roots = Arc::new(trusted.roots);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
        None => builder.with_no_client_auth(),
    };
    builder.with_cert_resolver(Arc::new(
        tokio_rustls::rustls::sign::SingleCertAndKey::from(own),
    ))
}

const BOTH: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

/// Connects to a server, asks and reads its answer: the name that the server was asked for.
fn attempt(ssl: &Ssl, host: &str, server: ServerConfig) -> Result<Option<String>, Why> {
    let acceptor = TlsAcceptor::from(Arc::new(server));
    run(ssl, host, async move |stream| {
        let mut stream = acceptor.accept(stream).await.ok()?;
        let asked_for = stream.get_ref().1.server_name().map(ToOwned::to_owned);
        let mut question = [0; 4];
        stream.read_exact(&mut question).await.ok()?;
        stream.write_all(b"PONG").await.ok()?;
        stream.flush().await.ok()?;
        asked_for
    })
}

fn run<F>(ssl: &Ssl, host: &str, serve: F) -> Result<Option<String>, Why>
where
    F: AsyncFn(TcpStream) -> Option<String> + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let connector = Connector::new(ssl, "redis.ssl").unwrap();
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = Rc::new(serve);
        let serving = spawn_local(async move {
            let (first, _) = listener.accept().await.unwrap();
            let probed = serve.clone();
            spawn_local(async move {
                while let Ok((more, _)) = listener.accept().await {
                    probed(more).await;
                }
            });
            serve(first).await
        });
        let stream = TcpStream::connect(address).await.unwrap();
        let mut stream = connector.connect(host, stream).await?;
        stream.write_all(b"PING").await.map_err(io_why)?;
        stream.flush().await.map_err(io_why)?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.map_err(io_why)?;
        assert_eq!(&answer, b"PONG");
        Ok(serving.await.unwrap())
    })
}

#[track_caller]
fn assert_fails(result: Result<Option<String>, Why>, expected: TlsFailure, says: &str) {
    match result {
        Err(Why::Tls { kind, text }) => {
            assert_eq!(kind, expected, "{text}");
            assert!(text.contains(says), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_server_of_a_trusted_authority_is_connected_to() {
    let authority = authority();
    let ssl = trusting(&authority.pem());
    for versions in [&BOTH[..1], &BOTH[1..]] {
        let server = server(&local(&authority), None, versions);
        assert_eq!(
            attempt(&ssl, "localhost", server),
            Ok(Some("localhost".into()))
        );
    }
    // No name is asked for where the host is an address.
    let server = server(&local(&authority), None, &BOTH);
    assert_eq!(attempt(&ssl, "127.0.0.1", server), Ok(None));
    let v6 = self::server(&issue(&authority, &["::1"], |_| {}), None, &BOTH);
    assert_eq!(attempt(&ssl, "::1", v6), Ok(None));
}

#[test]
fn a_server_of_another_authority_is_refused() {
    let (ours, theirs) = (authority(), authority());
    let ssl = trusting(&ours.pem());
    // Both authorities have the same name, as one that was made anew has.
    let server = server(&local(&theirs), None, &BOTH);
    let refused = attempt(&ssl, "localhost", server);
    assert_fails(refused, TlsFailure::UnknownCa, "(redis.ssl.cacertfile)");
    let server = self::server(&home_made(|_| {}), None, &BOTH);
    let refused = attempt(&ssl, "localhost", server);
    assert_fails(refused, TlsFailure::UnknownCa, "redis.ssl.cacertfile");
    // The other one beside it is enough.
    let ssl = trusting(&(ours.pem() + &theirs.pem()));
    let server = self::server(&local(&theirs), None, &BOTH);
    assert!(attempt(&ssl, "localhost", server).is_ok());
}

#[test]
fn a_certificate_for_another_host_is_refused() {
    let authority = authority();
    let ssl = trusting(&authority.pem());
    let elsewhere = issue(&authority, &["redis.example.org", "10.0.0.1"], |_| {});
    for host in ["localhost", "127.0.0.1", "example.org"] {
        let refused = attempt(&ssl, host, server(&elsewhere, None, &BOTH));
        let says = format!("not for {host}, but for redis.example.org, 10.0.0.1 (redis.ssl");
        assert_fails(refused, TlsFailure::WrongHost, &says);
    }
    let bad = attempt(&ssl, "a..b", server(&elsewhere, None, &BOTH));
    assert_fails(bad, TlsFailure::WrongHost, "a..b is no name");
    let nameless = issue(&authority, &[], |_| {});
    let refused = attempt(&ssl, "localhost", server(&nameless, None, &BOTH));
    assert_fails(refused, TlsFailure::WrongHost, "no name at all");
}

#[test]
fn another_name_is_asked_for_and_checked_instead_of_the_hosts() {
    let authority = authority();
    let name = |name: &str| {
        let name = ServerNameIndication::Name(name.into());
        named(name, trusting(&authority.pem()))
    };
    let elsewhere = issue(&authority, &["redis.example.org", "10.0.0.1"], |_| {});
    let serve = || server(&elsewhere, None, &BOTH);
    let asked_for = attempt(&name("redis.example.org"), "localhost", serve());
    assert_eq!(asked_for, Ok(Some("redis.example.org".into())));
    assert_eq!(attempt(&name("10.0.0.1"), "localhost", serve()), Ok(None));
    let refused = attempt(&name("other.example.org"), "redis.example.org", serve());
    assert_fails(refused, TlsFailure::WrongHost, "not for other.example.org");
}

#[test]
fn without_a_name_the_authority_still_counts() {
    let (authority, other) = (authority(), authority());
    let ssl = |trusted: &Authority| named(ServerNameIndication::Disable, trusting(&trusted.pem()));
    let elsewhere = issue(&authority, &["redis.example.org"], |_| {});
    for host in ["localhost", "a..b"] {
        let asked_for = attempt(&ssl(&authority), host, server(&elsewhere, None, &BOTH));
        assert_eq!(asked_for, Ok(None));
    }
    let refused = attempt(&ssl(&other), "localhost", server(&elsewhere, None, &BOTH));
    assert_fails(refused, TlsFailure::UnknownCa, "not trusted");
}

#[test]
fn validity_is_checked() {
    let authority = authority();
    let ssl = trusting(&authority.pem());
    let past = |it: &mut CertificateParams| it.not_after = date_time_ymd(2020, 1, 1);
    let future = |it: &mut CertificateParams| it.not_before = date_time_ymd(4000, 1, 1);
    let expired = server(&issue(&authority, &["localhost"], past), None, &BOTH);
    let refused = attempt(&ssl, "localhost", expired);
    assert_fails(refused, TlsFailure::Expired, " d ago");
    let early = server(&issue(&authority, &["localhost"], future), None, &BOTH);
    let refused = attempt(&ssl, "localhost", early);
    assert_fails(refused, TlsFailure::NotYetValid, "clock");
}

#[test]
fn a_clients_certificate_is_no_servers() {
    let authority = authority();
    let client = issue(&authority, &["localhost"], |it| {
        it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let ssl = trusting(&authority.pem());
    let refused = attempt(&ssl, "localhost", server(&client, None, &BOTH));
    assert_fails(refused, TlsFailure::BadCertificate, "");
}

#[test]
fn a_home_made_certificate_is_trusted_where_it_is_named_itself() {
    let own = home_made(|_| {});
    let ssl = trusting(&own.certificate);
    assert!(attempt(&ssl, "localhost", server(&own, None, &BOTH)).is_ok());
    let refused = attempt(&ssl, "127.0.0.1", server(&own, None, &BOTH));
    assert_fails(refused, TlsFailure::WrongHost, "not for 127.0.0.1");
    let refused = attempt(&ssl, "localhost", server(&home_made(|_| {}), None, &BOTH));
    assert_fails(refused, TlsFailure::UnknownCa, "redis.ssl.cacertfile");
    let expired = home_made(|it| it.not_after = date_time_ymd(2020, 1, 1));
    let ssl = trusting(&expired.certificate);
    let refused = attempt(&ssl, "localhost", server(&expired, None, &BOTH));
    assert_fails(refused, TlsFailure::Expired, "clock");
}

#[test]
fn verify_none_takes_any_certificate() {
    let ssl = Ssl {
        verify: Verify::None,
        ..trusting(&authority().pem())
    };
    let expired = home_made(|it| it.not_after = date_time_ymd(2020, 1, 1));
    for versions in [&BOTH[..1], &BOTH[1..]] {
        let asked_for = attempt(&ssl, "example.org", server(&expired, None, versions));
        assert_eq!(asked_for, Ok(Some("example.org".into())));
    }
    let silent = named(ServerNameIndication::Disable, ssl);
    let asked_for = attempt(&silent, "example.org", server(&expired, None, &BOTH));
    assert_eq!(asked_for, Ok(None));
}

/// In TLS 1.3 the server says so only after the client's handshake.
#[test]
fn a_missing_or_foreign_client_certificate_is_told_apart() {
    let (authority, other) = (authority(), authority());
    let ssl = |by: Option<&Authority>| {
        let own = by.map(|by| issue(by, &["client"], |_| {}));
        Ssl {
            certfile: own.as_ref().and_then(|own| file(&own.certificate)),
            keyfile: own.as_ref().and_then(|own| file(&own.key)),
            ..trusting(&authority.pem())
        }
    };
    for versions in [&BOTH[..1], &BOTH[1..]] {
        let serve = || server(&local(&authority), Some(&authority), versions);
        let served = attempt(&ssl(Some(&authority)), "localhost", serve());
        assert_eq!(served, Ok(Some("localhost".into())));
        let refused = attempt(&ssl(None), "localhost", serve());
        let required = TlsFailure::ClientCertificateRequired;
        assert_fails(refused, required, "redis.ssl.certfile");
        let refused = attempt(&ssl(Some(&other)), "localhost", serve());
        let foreign = TlsFailure::ClientCertificateRefused;
        assert_fails(refused, foreign, "redis.ssl.certfile");
    }
}

#[test]
fn what_speaks_no_tls_is_told() {
    let ssl = trusting(&authority().pem());
    for answer in [
        "-ERR unknown command\r\n",
        "+OK\r\n",
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let refused = run(&ssl, "localhost", async move |mut stream| {
            stream.write_all(answer.as_bytes()).await.unwrap();
            let mut hello = [0; 1024];
            let _ = stream.read(&mut hello).await;
            None
        });
        assert_fails(refused, TlsFailure::NotTls, "redis.ssl.enable");
    }
    // Redis looks for the end of a line up to the first NUL; in a handshake it waits for more.
    let refused = run(&ssl, "localhost", async move |mut stream: TcpStream| {
        let mut line = [0; 4096];
        let length = stream.read(&mut line).await.ok()?;
        if line[..length] == *b"PING\r\n" {
            stream.write_all(b"-NOAUTH\r\n").await.ok()?;
        }
        let _ = stream.read(&mut line).await;
        None
    });
    assert_fails(refused, TlsFailure::NotTls, "redis.ssl.enable");
    let closed = run(&ssl, "localhost", async move |mut stream: TcpStream| {
        let mut hello = [0; 4096];
        let _ = stream.read(&mut hello).await;
        None
    });
    assert_eq!(closed, Err(Why::Closed));
}

#[test]
fn tls_is_off_unless_it_is_enabled() {
    assert!(Connector::new(&Ssl::default(), "redis.ssl").is_none());
}

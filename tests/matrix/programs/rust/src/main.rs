//! AWS SDK for Rust: one read per line on standard input, one line of JSON on standard output.

use std::io::{self, BufRead, Write};

use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::error::DisplayErrorContext;
use aws_sdk_s3::{config::Builder, Client};

async fn read(client: &Client) -> Result<bool, String> {
    let answer = client
        .get_object()
        .bucket("bucket")
        .key("hello.txt")
        .send()
        .await
        .map_err(|error| DisplayErrorContext(&error).to_string())?;
    let body = answer.body.collect().await.map_err(|error| error.to_string())?;
    Ok(body.into_bytes().as_ref() == b"hello matrix\n")
}

fn quoted(text: &str) -> String {
    let plain: String = text
        .chars()
        .filter(|c| !c.is_control())
        .flat_map(|c| if c == '"' || c == '\\' { vec!['\\', c] } else { vec![c] })
        .collect();
    format!("\"{plain}\"")
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let store = std::env::var("MATRIX_STORE").expect("MATRIX_STORE");
    let client = runtime.block_on(async {
        let config = aws_config::defaults(BehaviorVersion::latest())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .region(Region::new("us-east-1"))
            .load()
            .await;
        Client::from_conf(
            Builder::from(&config)
                .endpoint_url(store)
                .force_path_style(true)
                .build(),
        )
    });
    println!("here");
    for line in io::stdin().lock().lines() {
        if line.is_err() {
            break;
        }
        match runtime.block_on(read(&client)) {
            Ok(right) => println!("{{\"ok\": {right}}}"),
            Err(error) => println!("{{\"ok\": false, \"error\": {}}}", quoted(&error)),
        }
        io::stdout().flush().expect("standard output");
    }
}

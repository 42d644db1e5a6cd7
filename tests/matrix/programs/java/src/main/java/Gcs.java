import com.google.auth.oauth2.GoogleCredentials;
import java.io.IOException;
import java.io.InputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.List;

/** google-auth-library for Java. */
public final class Gcs {
  private static GoogleCredentials credentials;

  private Gcs() {}

  public static void main(String[] args) throws Exception {
    URI object = URI.create(System.getenv("MATRIX_STORE") + "/storage/v1/b/bucket/o/hello.txt?alt=media");
    Loop.run(
        () -> {
          if (credentials == null) {
            credentials =
                GoogleCredentials.getApplicationDefault()
                    .createScoped("https://www.googleapis.com/auth/devstorage.read_only");
          }
          HttpURLConnection connection = (HttpURLConnection) object.toURL().openConnection();
          for (var header : credentials.getRequestMetadata(object).entrySet()) {
            for (String value : (List<String>) header.getValue()) {
              connection.addRequestProperty(header.getKey(), value);
            }
          }
          if (connection.getResponseCode() != 200) {
            throw new IOException("the store said " + connection.getResponseCode());
          }
          try (InputStream body = connection.getInputStream()) {
            return new String(body.readAllBytes(), StandardCharsets.UTF_8);
          }
        });
  }
}

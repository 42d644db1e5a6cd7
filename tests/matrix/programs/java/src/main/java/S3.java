import java.net.URI;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.s3.S3Client;

/** AWS SDK for Java v2. */
public final class S3 {
  private S3() {}

  public static void main(String[] args) throws Exception {
    S3Client client =
        S3Client.builder()
            .region(Region.US_EAST_1)
            .endpointOverride(URI.create(System.getenv("MATRIX_STORE")))
            .forcePathStyle(true)
            .build();
    Loop.run(() -> client.getObjectAsBytes(r -> r.bucket("bucket").key("hello.txt")).asUtf8String());
  }
}

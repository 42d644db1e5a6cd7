import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.concurrent.Callable;

/** One read per line on standard input, one line of JSON on standard output. */
final class Loop {
  private Loop() {}

  static void run(Callable<String> read) throws Exception {
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
    System.out.println("here");
    while (lines.readLine() != null) {
      String said;
      try {
        said = "{\"ok\": " + read.call().equals("hello matrix\n") + "}";
      } catch (Exception error) {
        String text = String.valueOf(error);
        text = text.substring(0, Math.min(text.length(), 300));
        said = "{\"ok\": false, \"error\": \"" + text.replaceAll("[\\p{Cntrl}\"\\\\]", " ") + "\"}";
      }
      System.out.println(said);
      System.out.flush();
    }
  }
}

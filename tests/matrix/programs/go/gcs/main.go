// golang.org/x/oauth2/google: one read per line on standard input, one line of JSON on standard output.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"

	"golang.org/x/oauth2/google"
)

type said struct {
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

func read(client *http.Client) (bool, error) {
	answer, err := client.Get(os.Getenv("MATRIX_STORE") + "/storage/v1/b/bucket/o/hello.txt?alt=media")
	if err != nil {
		return false, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return false, fmt.Errorf("the store said %s", answer.Status)
	}
	body, err := io.ReadAll(answer.Body)
	return string(body) == "hello matrix\n", err
}

func main() {
	client, broken := google.DefaultClient(context.Background(), "https://www.googleapis.com/auth/devstorage.read_only")
	os.Stdout.WriteString("here\n")
	out := json.NewEncoder(os.Stdout)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		ok, err := false, broken
		if err == nil {
			ok, err = read(client)
		}
		if err != nil {
			out.Encode(said{Error: err.Error()})
			continue
		}
		out.Encode(said{OK: ok})
	}
}

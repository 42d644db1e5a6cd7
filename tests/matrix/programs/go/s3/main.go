// AWS SDK for Go v2: one read per line on standard input, one line of JSON on standard output.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

type said struct {
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

func read(ctx context.Context, client *s3.Client) (bool, error) {
	answer, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("bucket"), Key: aws.String("hello.txt")})
	if err != nil {
		return false, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return string(body) == "hello matrix\n", err
}

func main() {
	ctx := context.Background()
	loaded, broken := config.LoadDefaultConfig(ctx, config.WithRegion("us-east-1"))
	client := s3.NewFromConfig(loaded, func(o *s3.Options) {
		o.BaseEndpoint = aws.String(os.Getenv("MATRIX_STORE"))
		o.UsePathStyle = true
	})
	os.Stdout.WriteString("here\n")
	out := json.NewEncoder(os.Stdout)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		ok, err := false, broken
		if err == nil {
			ok, err = read(ctx, client)
		}
		if err != nil {
			out.Encode(said{Error: err.Error()})
			continue
		}
		out.Encode(said{OK: ok})
	}
}

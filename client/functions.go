package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/hearthrun/hearth"
)

// Function is a function as the server shows it.
type Function struct {
	hearth.Function
	// URL is where the function answers HTTP requests.
	URL string `json:"url"`
	// Deployed is the number of the version that the request made, or that a preview
	// found to be the same; 0 if that is the live one.
	Deployed int `json:"deployed,omitempty"`
	// Warnings tell what of the configuration the host cannot enforce and, after a
	// deploy, which destinations of asynchronous calls lead nowhere.
	Warnings []string `json:"warnings,omitempty"`
}

// located makes f's URL absolute: the server tells it as a path.
func (c *Client) located(f Function) Function {
	f.URL = c.absolute(f.URL)
	return f
}

// Code is where a function's code comes from: exactly one field is set, or none
// to keep the code the function has.
type Code struct {
	// Artifact is the digest that UploadArtifact returned.
	Artifact string `json:"artifact,omitempty"`
	// Files maps relative paths to their text.
	Files map[string]string `json:"files,omitempty"`
}

// functionInput is the body that creates or changes a function.
type functionInput struct {
	Name string `json:"name,omitempty"`
	hearth.Config
	Code *Code `json:"code,omitempty"`
}

// Artifact is what the server made of uploaded code.
type Artifact struct {
	// Digest is "sha256:" and hex digits.
	Digest string `json:"digest"`
	Files  int    `json:"files"`
	Bytes  int64  `json:"bytes"`
}

// UploadArtifact uploads code as a tar.gz of size bytes (-1 if unknown).
// Uploading the same files again gives the same digest. Errors: CodeInvalid
// for an archive the server refuses, CodeExhausted or CodeInvalid over a limit.
func (c *Client) UploadArtifact(ctx context.Context, targz io.Reader, size int64) (Artifact, error) {
	var a Artifact
	_, err := c.call(ctx, request{
		method: http.MethodPost, path: []string{"v1", "artifacts"},
		body: targz, size: size, contentType: "application/gzip",
		// A server that refuses the size says so before it is sent in vain.
		header: http.Header{"Expect": {"100-continue"}},
	}, &a)
	return a, err
}

// CreateFunction makes a new function and returns once its first version
// answers calls. Errors: CodeConflict if the name or a route is taken,
// CodeInvalid, CodeFunction if the code cannot be loaded, CodeUnsupported.
func (c *Client) CreateFunction(ctx context.Context, name string, cfg hearth.Config, code Code) (Function, error) {
	var f Function
	_, err := c.call(ctx, request{
		method: http.MethodPost, path: []string{"v1", "functions"},
		in: functionInput{Name: name, Config: cfg, Code: &code},
	}, &f)
	return c.located(f), err
}

// PutFunction makes a function, or a new version of it if it exists, and
// returns once that version answers calls. With a generation above 0 it fails
// with CodeConflict unless the function has that generation. created tells
// whether the function is new. Other errors: as CreateFunction.
func (c *Client) PutFunction(ctx context.Context, name string, cfg hearth.Config, code Code, generation int64) (f Function, created bool, err error) {
	r := request{
		method: http.MethodPut, path: []string{"v1", "functions", name},
		in: functionInput{Config: cfg, Code: code.orNil()}, header: ifMatch(generation),
	}
	status, err := c.call(ctx, r, &f)
	return c.located(f), err == nil && status == http.StatusCreated, err
}

// Function returns one function. Errors: CodeNotFound.
func (c *Client) Function(ctx context.Context, name string) (Function, error) {
	var f Function
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"v1", "functions", name}}, &f)
	return c.located(f), err
}

// Functions returns up to limit functions (0: the server's choice) whose names
// sort behind after, and the value of after for the next page, "" on the last.
func (c *Client) Functions(ctx context.Context, limit int, after string) (fs []Function, next string, err error) {
	var out struct {
		Functions []Function `json:"functions"`
		Next      string     `json:"next"`
	}
	_, err = c.call(ctx, request{
		method: http.MethodGet, path: []string{"v1", "functions"}, query: page(limit, "after", after),
	}, &out)
	for i, f := range out.Functions {
		out.Functions[i] = c.located(f)
	}
	return out.Functions, out.Next, err
}

// AllFunctions returns every function, sorted by name.
func (c *Client) AllFunctions(ctx context.Context) ([]Function, error) {
	all := []Function{}
	after := ""
	for {
		fs, next, err := c.Functions(ctx, 0, after)
		if err != nil {
			return nil, err
		}
		all = append(all, fs...)
		if next == "" || next == after {
			return all, nil
		}
		after = next
	}
}

// DeleteFunction deletes a function with its versions. With a generation above
// 0 it fails with CodeConflict unless the function has that generation.
// Errors: CodeNotFound.
func (c *Client) DeleteFunction(ctx context.Context, name string, generation int64) error {
	_, err := c.Delete(ctx, name, generation)
	return err
}

// Delete is DeleteFunction, and tells what that ended or left behind.
func (c *Client) Delete(ctx context.Context, name string, generation int64) (d hearth.Deleted, err error) {
	_, err = c.call(ctx, request{
		method: http.MethodDelete, path: []string{"v1", "functions", name}, header: ifMatch(generation),
	}, &d)
	return d, err
}

// Invocations returns up to limit records of calls (0: the server's choice) of
// a function, newest first, older than the one with the id before ("": all).
// Records appear shortly after the call ended. Errors: CodeNotFound.
func (c *Client) Invocations(ctx context.Context, name string, limit int, before string) ([]hearth.Invocation, error) {
	var out struct {
		Invocations []hearth.Invocation `json:"invocations"`
	}
	_, err := c.call(ctx, request{
		method: http.MethodGet, path: []string{"v1", "functions", name, "invocations"},
		query: page(limit, "before", before),
	}, &out)
	return out.Invocations, err
}

// Invocation returns the record of one call. Records appear shortly after the
// call ended. Errors: CodeNotFound.
func (c *Client) Invocation(ctx context.Context, id string) (hearth.Invocation, error) {
	var i hearth.Invocation
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"v1", "invocations", id}}, &i)
	return i, err
}

// Trace returns what is known of the trace that a call belongs to. Errors: CodeNotFound.
func (c *Client) Trace(ctx context.Context, id string) (hearth.TraceView, error) {
	var v hearth.TraceView
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"v1", "invocations", id, "trace"}}, &v)
	return v, err
}

// Driver is what an isolation technology can do on the server's host.
type Driver struct {
	Name string `json:"name"`
	// Summary is one line: the technology and its version.
	Summary string `json:"summary"`
	Works   bool   `json:"works"`
	// Missing says why it does not work.
	Missing []Problem `json:"missing,omitempty"`
	// Limitations are what works less than fully.
	Limitations []Problem `json:"limitations,omitempty"`
	// Enforced lists what protects the host.
	Enforced []string  `json:"enforced,omitempty"`
	Runtimes []Runtime `json:"runtimes"`
	// Internet tells whether egress can be limited to the internet.
	Internet    bool `json:"internet"`
	MemoryLimit bool `json:"memory_limit"`
	CPULimit    bool `json:"cpu_limit"`
	PIDLimit    bool `json:"pid_limit"`
}

// Problem is something missing, with its remedy.
type Problem struct {
	What   string `json:"what"`
	Remedy string `json:"remedy,omitempty"`
}

// Runtime is a language environment a driver can start.
type Runtime struct {
	Name     string `json:"name"`     // "python3.11", "nodejs20"
	Language string `json:"language"` // "python", "nodejs"
	Version  string `json:"version"`  // "3.11.7"
	Source   string `json:"source"`   // a path or an image
}

// Drivers returns what each isolation technology can do on the server's host.
func (c *Client) Drivers(ctx context.Context) ([]Driver, error) {
	var out struct {
		Drivers []Driver `json:"drivers"`
	}
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"v1", "drivers"}}, &out)
	return out.Drivers, err
}

// RefreshDrivers is Drivers after each was asked again what it can do.
func (c *Client) RefreshDrivers(ctx context.Context) ([]Driver, error) {
	var out struct {
		Drivers []Driver `json:"drivers"`
	}
	_, err := c.call(ctx, request{
		method: http.MethodGet, path: []string{"v1", "drivers"}, query: url.Values{"refresh": {"true"}},
	}, &out)
	return out.Drivers, err
}

// Healthy returns nil if the server's process answers.
func (c *Client) Healthy(ctx context.Context) error {
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"healthz"}}, nil)
	return err
}

// Ready returns nil if the server can take calls. Errors: CodeUnavailable while
// it starts or drains.
func (c *Client) Ready(ctx context.Context) error {
	_, err := c.call(ctx, request{method: http.MethodGet, path: []string{"readyz"}}, nil)
	return err
}

func ifMatch(generation int64) http.Header {
	if generation <= 0 {
		return nil
	}
	return http.Header{"If-Match": {`"` + strconv.FormatInt(generation, 10) + `"`}}
}

// orNil returns nil if c names no code.
func (c Code) orNil() *Code {
	if c.Artifact == "" && c.Files == nil {
		return nil
	}
	return &c
}

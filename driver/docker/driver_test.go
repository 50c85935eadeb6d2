package docker_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/driver"
	"github.com/hearthrun/hearth/driver/docker"
	"github.com/hearthrun/hearth/driver/drivertest"
	"github.com/hearthrun/hearth/images"
)

// engine returns the address of the engine that tests may use.
func engine(t testing.TB) string {
	t.Helper()
	host := os.Getenv("HEARTH_TEST_DOCKER")
	if host == "" {
		t.Skip("HEARTH_TEST_DOCKER, the address of a Docker Engine for tests, is not set: scripts/docker.sh start prints one")
	}
	return host
}

// bare is a store with one image, of the runtime "provided", that has nothing
// but directories: the test guest needs no more.
type bare struct{ archived int }

func (b *bare) image() images.Image {
	return images.Image{Runtime: images.Provided, Language: images.Provided, Ref: "hearth-test/bare:1", Env: []string{"PATH=/bin"}}
}

func (b *bare) List(context.Context) ([]images.Image, error) { return []images.Image{b.image()}, nil }

func (b *bare) Find(_ context.Context, name string) (images.Image, error) {
	if name != images.Provided {
		return images.Image{}, hearth.Errorf(hearth.CodeNotFound, "no image of %s", name).WithHint("hearth images build")
	}
	return b.image(), nil
}

func (b *bare) Archive(_ context.Context, img images.Image, w io.Writer) error {
	b.archived++
	return archive(img.Ref, w)
}

// archive writes an image of a few empty directories as docker load reads it.
func archive(ref string, w io.Writer) error {
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	for _, dir := range []string{"bin", "dev", "etc", "hearth", "proc", "sys", "tmp", "usr", "usr/bin", "var", "var/tmp"} {
		mode := int64(0o755)
		if strings.HasSuffix(dir, "tmp") {
			mode = 0o1777 // which Docker's tmpfs takes over
		}
		if err := tw.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: mode}); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	sum := sha256.Sum256(layer.Bytes())
	config := fmt.Appendf(nil, `{"architecture":%q,"os":"linux","config":{"Env":["IMAGE_VARIABLE=1"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}`,
		runtime.GOARCH, hex.EncodeToString(sum[:]))
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{ref}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	out := tar.NewWriter(w)
	for _, f := range []struct {
		name    string
		content []byte
	}{{"layer.tar", layer.Bytes()}, {"config.json", config}, {"manifest.json", manifest}} {
		if err := out.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.content))}); err != nil {
			return err
		}
		if _, err := out.Write(f.content); err != nil {
			return err
		}
	}
	return out.Close()
}

func newDriver(t testing.TB, host, dir, owner string) driver.Driver {
	t.Helper()
	d, err := docker.New(docker.Config{Dir: filepath.Join(dir, "docker"), Owner: owner, Images: &bare{}, Host: host, OCIRuntime: os.Getenv("HEARTH_TEST_DOCKER_RUNTIME")})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDriver(t *testing.T) {
	host := engine(t)
	drivertest.Run(t, drivertest.Config{New: func(t testing.TB, dir, owner string) driver.Driver {
		return newDriver(t, host, dir, owner)
	}})
}

package server

import (
	"path/filepath"

	"github.com/hearthrun/hearth"
	"github.com/hearthrun/hearth/images"
)

// What programs need of base images besides the store's methods.
type (
	// ImageStore keeps base images; see images.Store.
	ImageStore = images.Store
	// Image is one of them; see images.Image.
	Image = images.Image
	// ImageBuild says what to build; see images.BuildOptions.
	ImageBuild = images.BuildOptions
	// ImageEvent is progress of a build; see images.Event.
	ImageEvent = images.Event
	// ImagePrune says what to remove; see images.PruneOptions.
	ImagePrune = images.PruneOptions
)

// The phases of a build that have something to show; see images.Phase.
const (
	ImageFetch  = images.PhaseFetch
	ImageReuse  = images.PhaseReuse
	ImageUnpack = images.PhaseUnpack
)

// Images returns the base images of a server with this configuration, which may
// be running: it sees at once what is built. Of cfg only ImagesDir and DataDir
// are used. Nothing but a build creates them. Errors: CodeInvalid.
func Images(cfg Config) (*ImageStore, error) {
	dir, err := filepath.Abs(cfg.imagesDir())
	if err != nil {
		return nil, hearth.Errorf(hearth.CodeInvalid, "the directory of images cannot be used: %w", err)
	}
	return images.At(dir), nil
}

// ImageLanguages are what images can be built for.
func ImageLanguages() []string { return images.Languages() }

// WriteImageContext writes what docker build needs for a language's image to
// a new directory; see images.WriteContext.
func WriteImageContext(dir, language string) error { return images.WriteContext(dir, language) }

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hearthrun/hearth/server"
)

func (a *app) imagesCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "images",
		Short: "Build and keep the base images of runtimes",
		Long: `Images has commands about base images: the root file systems that sandboxes of
every isolation but native start from. They are kept in the data directory of a
server on this machine, which may be running: it sees at once what is built. A
server with another --data-dir or HEARTH_DATA_DIR has others. No Docker is needed.`,
		Example: `  hearth images build
  hearth images list`,
	}
	return group(cmd, a.imagesBuildCmd(), a.imagesListCmd(), a.imagesPruneCmd(), a.imagesContextCmd())
}

// imageFlags are those of hostFlags that say where images are.
func imageFlags(f *pflag.FlagSet, cfg *server.Config) {
	var host pflag.FlagSet
	hostFlags(&host, cfg)
	for _, name := range []string{"data-dir", "images-dir"} {
		f.AddFlag(host.Lookup(name))
	}
}

// images opens the store that the flags name.
func (a *app) images(cfg *server.Config) (*server.ImageStore, error) {
	if err := a.hostDefaults(cfg); err != nil {
		return nil, err
	}
	return server.Images(*cfg)
}

// imageLanguage accepts what there are base images for.
func imageLanguage(name string) error {
	if all := server.ImageLanguages(); !slices.Contains(all, name) {
		return &usageError{fmt.Errorf("there is no base image for %q\n\nchoose %s", name, strings.Join(all, ", "))}
	}
	return nil
}

func (a *app) imagesBuildCmd() *cobra.Command {
	var cfg server.Config
	var base string
	cmd := &cobra.Command{
		Use:   "build [" + strings.Join(server.ImageLanguages(), "|") + "]...",
		Short: "Build base images",
		Long: `Build makes the base images of the languages, by default of all, and prints
their names. An image is a base plus the guest that speaks with Hearth, a user,
and places to mount on; nothing of the base runs meanwhile. The same base gives
the same image. Images have to be built again after an update of Hearth that
brings other guests; list tells which.

The base is an image of a registry by default, which has to be public or one that
docker login gave access to. --base names another: the runtime's version is what
is found in it. It can be
  REF                a name in a registry, such as registry.example.com/python:3.12
  FILE, tar:FILE     the tar of a root file system, maybe compressed by gzip, or
                     an archive of docker save
  DIR                an OCI layout
  docker-daemon:REF  an image that Docker Engine has`,
		Example: `  hearth images build
  hearth images build python --base docker.io/library/python:3.12-slim-bookworm
  hearth images build nodejs --base ./nodejs.tar -o json`,
		ValidArgs: server.ImageLanguages(),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, language := range args {
				if err := imageLanguage(language); err != nil {
					return err
				}
			}
			if base != "" && len(args) != 1 {
				return &usageError{errors.New("--base is for one image\n\nname its language, for example hearth images build python --base " + base)}
			}
			if len(args) == 0 {
				args = server.ImageLanguages()
			}
			store, err := a.images(&cfg)
			if err != nil {
				return err
			}
			built := []listedImage{}
			for _, language := range args {
				img, err := a.buildImage(cmd.Context(), store, language, base)
				if err != nil {
					return fmt.Errorf("%s: %w", language, err)
				}
				built = append(built, listed(img))
				if !a.json() {
					fmt.Fprintln(a.stdout, img.Ref)
				}
			}
			if a.json() {
				return a.printJSON(built)
			}
			return nil
		},
	}
	imageFlags(cmd.Flags(), &cfg)
	cmd.Flags().StringVar(&base, "base", "", "`REF|FILE|DIR` to build on instead of the usual registry image")
	return a.prints(cmd)
}

func (a *app) buildImage(ctx context.Context, store *server.ImageStore, language, base string) (server.Image, error) {
	p := &imageProgress{app: a, language: language, live: isTerminal(a.stderr) && a.getenv("TERM") != "dumb"}
	start := time.Now()
	img, err := store.Build(ctx, server.ImageBuild{Language: language, Base: base, Progress: p.show})
	p.clear()
	if err != nil {
		return img, err
	}
	text := fmt.Sprintf("%s: built %s, %s, in %s", language, img.Ref, imageSize(img.Size), time.Since(start).Round(100*time.Millisecond))
	fmt.Fprintln(a.stderr, a.colour(a.stderr, dim, "•"), a.colour(a.stderr, green, printable(text)))
	return img, nil
}

// imageProgress shows how a build goes: on a terminal in one line that changes,
// otherwise in a line for each step.
type imageProgress struct {
	*app
	language string
	live     bool
	last     server.ImageEvent // the step that was shown
}

func (p *imageProgress) show(e server.ImageEvent) {
	var text string
	switch e.Phase {
	case server.ImageFetch:
		text = "fetching"
	case server.ImageReuse:
		text = "has"
	case server.ImageUnpack:
		text = "unpacking"
	default:
		return
	}
	text = fmt.Sprintf("%s: %s layer %d of %d", p.language, text, e.Layer, e.Layers)
	switch {
	case p.live && e.Phase == server.ImageFetch && e.Total > 0:
		text += fmt.Sprintf(", %s of %s", imageSize(e.Bytes), imageSize(e.Total))
	case p.live && e.Phase == server.ImageFetch:
		text += ", " + imageSize(e.Bytes)
	case e.Total > 0:
		text += ", " + imageSize(e.Total)
	}
	if p.live {
		fmt.Fprint(p.stderr, "\r\x1b[K", p.colour(p.stderr, dim, "•"), " ", text)
	} else if e.Phase != p.last.Phase || e.Layer != p.last.Layer {
		fmt.Fprintln(p.stderr, "•", text)
	}
	p.last = e
}

// clear takes the line that changes away.
func (p *imageProgress) clear() {
	if p.live {
		fmt.Fprint(p.stderr, "\r\x1b[K")
	}
}

// imageSize writes a number of bytes coarsely.
func imageSize(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// listedImage is an image as programs see it.
type listedImage struct {
	server.Image
	// Current tells whether the guest inside is that of this version of Hearth.
	Current bool `json:"current"`
}

func listed(img server.Image) listedImage { return listedImage{img, img.Current()} }

func (a *app) imagesListCmd() *cobra.Command {
	var cfg server.Config
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the base images",
		Long: `List shows the base images of a server on this machine. Of images of the same
runtime the last built is used, unless it is stale: made by another version of
Hearth whose guest is not this one's.`,
		Example: `  hearth images list
  hearth images list -o json | jq -r '.[] | select(.current) | .ref'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := a.images(&cfg)
			if err != nil {
				return err
			}
			all, err := store.List(cmd.Context())
			if err != nil {
				return err
			}
			if a.json() {
				out := make([]listedImage, len(all))
				for i, img := range all {
					out[i] = listed(img)
				}
				return a.printJSON(out)
			}
			if len(all) == 0 {
				fmt.Fprintln(a.stderr, "There are no base images in "+printable(store.Dir())+" yet. Build them: hearth images build")
				return nil
			}
			rows := [][]string{{"RUNTIME", "VERSION", "IMAGE", "SIZE", "BUILT", "GUEST", "BASE"}}
			stale := map[string]bool{} // languages
			for _, img := range all {
				guest := "current"
				if !img.Current() {
					guest = "stale"
					stale[img.Language] = true
				}
				rows = append(rows, []string{img.Runtime, cmp.Or(img.Version, "-"), img.Ref, imageSize(img.Size), ago(img.Created, time.Now()), guest, img.Base})
			}
			if err := a.printTable(rows); err != nil {
				return err
			}
			if len(stale) > 0 {
				a.printHint("build what is stale again: hearth images build " + strings.Join(slices.Sorted(maps.Keys(stale)), " "))
			}
			return nil
		},
	}
	imageFlags(cmd.Flags(), &cfg)
	return a.prints(cmd)
}

func (a *app) imagesPruneCmd() *cobra.Command {
	var cfg server.Config
	var o server.ImagePrune
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove base images that were replaced",
		Long: `Prune removes the images that a later one of the same runtime has replaced, and
what interrupted builds have left. Images that sandboxes use stay. It waits for
a build that is under way.`,
		Example: `  hearth images prune --dry-run
  hearth images prune`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := a.images(&cfg)
			if err != nil {
				return err
			}
			p, err := store.Prune(cmd.Context(), o)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(p)
			}
			removed, freed := "removed", "freed"
			if o.DryRun {
				removed, freed = "would remove", "would free"
			}
			for _, img := range p.Images {
				fmt.Fprintln(a.stdout, removed, printable(img.Ref))
			}
			for _, img := range p.Held {
				fmt.Fprintln(a.stdout, "in use:", printable(img.Ref))
			}
			fmt.Fprintln(a.stdout, freed, imageSize(p.Bytes))
			return nil
		},
	}
	imageFlags(cmd.Flags(), &cfg)
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "only tell what would be removed")
	return a.prints(cmd)
}

func (a *app) imagesContextCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "context DIR " + strings.Join(server.ImageLanguages(), "|"),
		Short: "Write what docker build needs for a base image",
		Long: `Context writes the Dockerfile of a language and all that it copies to DIR, a new
or empty directory: to build the image with Docker, with another Dockerfile, or
to see what is added to a base. What docker build makes of it can be a base:
hearth images build LANGUAGE --base docker-daemon:NAME.`,
		Example: `  hearth images context ./python python
  docker build --build-arg BASE=docker.io/library/python:3.12-slim-bookworm -t my-python ./python
  hearth images build python --base docker-daemon:my-python`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("%s takes a directory and a language\n\nfor example %s ./python python", cmd.CommandPath(), cmd.CommandPath())
			}
			return imageLanguage(args[1])
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return server.ImageLanguages(), cobra.ShellCompDirectiveNoFileComp
			}
			return completeDir(cmd, args, prefix)
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if err := server.WriteImageContext(args[0], args[1]); err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "Wrote %s. Build it: docker build %s\n", args[0], args[0])
			return nil
		},
	}
}

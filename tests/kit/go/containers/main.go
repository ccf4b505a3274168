// Reads what describes containers as Docker's own programs read it, and prints it as JSON: no engine is asked, and no registry.
//
//	containers compose FILE             a compose file, as `docker compose config` resolves it
//	containers image FILE               a Dockerfile's warnings, as of `docker build --check`, and the configuration of its image
//	containers context FILE FOLDER      the files of FOLDER that a build with this Dockerfile is given
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/opencontainers/go-digest"
)

func main() {
	answer, err := answer(os.Args[1:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(answer)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func answer(words []string) (any, error) {
	switch {
	case len(words) == 2 && words[0] == "compose":
		return compose(words[1])
	case len(words) == 2 && words[0] == "image":
		return image(words[1])
	case len(words) == 3 && words[0] == "context":
		return files(words[1], words[2])
	}
	return nil, errors.New("usage: containers compose FILE | image FILE | context FILE FOLDER")
}

func compose(file string) (any, error) {
	// Nothing of this machine's environment: what is not set has its default, or is an error.
	options, err := cli.NewProjectOptions([]string{file}, cli.WithResolvedPaths(true))
	if err != nil {
		return nil, err
	}
	return options.LoadProject(context.Background())
}

// Every base image is there and has a PATH, and nothing else.
type anyBase struct{}

func (anyBase) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	config := []byte(`{"os":"linux","architecture":"amd64","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},"rootfs":{"type":"layers"}}`)
	return ref, digest.FromBytes(config), config, nil
}

type warning struct {
	Rule   string `json:"rule"`
	Detail string `json:"detail"`
	Line   int    `json:"line"`
}

func image(file string) (any, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	warnings := []warning{}
	source := llb.Scratch()
	options := dockerfile2llb.ConvertOpt{
		MainContext:  &source,
		MetaResolver: anyBase{},
		AllStages:    true,
		Warn: func(rule, _, _, detail string, location []parser.Range) {
			line := 0
			if len(location) > 0 {
				line = location[0].Start.Line
			}
			warnings = append(warnings, warning{rule, detail, line})
		},
	}
	options.LinterConfig = &linter.Config{}
	built, err := dockerfile2llb.Dockerfile2LLB(context.Background(), text, options)
	if err != nil {
		return nil, err
	}
	return map[string]any{"warnings": warnings, "image": built.Image}, nil
}

func files(file, folder string) (any, error) {
	ignore, err := os.Open(file + ".dockerignore")
	if err != nil {
		return nil, err
	}
	defer ignore.Close()
	patterns, err := ignorefile.ReadAll(ignore)
	if err != nil {
		return nil, err
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, err
	}
	given := []string{}
	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(folder, path)
		if err != nil || name == "." {
			return err
		}
		ignored, err := matcher.MatchesOrParentMatches(name)
		switch {
		case err != nil:
			return err
		case entry.IsDir() && ignored && !matcher.Exclusions():
			return filepath.SkipDir
		case !entry.IsDir() && !ignored:
			given = append(given, name)
		}
		return nil
	})
	return given, err
}

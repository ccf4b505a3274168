//go:build tools

// Package kubernetes names the programs that are built, for the files that pin what they are made of.
package kubernetes

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
)

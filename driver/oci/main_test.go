package oci

import (
	"os"
	"testing"

	"github.com/hearthrun/hearth/driver/drivertest"
)

func TestMain(m *testing.M) { os.Exit(drivertest.Main(m)) }

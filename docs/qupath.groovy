// QuPath (0.4 or newer): adds the cells of "maskrcnn predict --format geojson" to the open image.
// Extensions > Script editor > Run; "Run for project" adds to each image the cells of its own file.
import qupath.lib.io.PathIO

def results = new File('/path/to/results/geojson')  // change this
def name = getCurrentServer().getMetadata().getName()
def file = [name, name.replaceFirst(/\.[^.]+$/, '')].collect { new File(results, it + '.geojson') }.find { it.exists() }
if (file == null) {
    println "${name}: no file of this name in ${results}"
    return
}
def cells = PathIO.readObjects(file.toPath())
clearDetections()  // an earlier run's
addObjects(cells)
println "${name}: ${cells.size()} cells"

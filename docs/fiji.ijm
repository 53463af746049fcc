// Fiji and ImageJ (1.52t or newer): shows the ROIs of "maskrcnn predict --format rois" on their picture and measures them.
// Plugins > Macros > Run... asks for both files; in batch: ImageJ -macro fiji.ijm "picture.tif|results/rois/picture.zip"
files = split(getArgument(), "|");
if (files.length < 2)
    files = newArray(File.openDialog("The picture"), File.openDialog("Its ROIs: rois/NAME.zip"));
open(files[0]);
roiManager("reset");
roiManager("open", files[1]);
roiManager("show all without labels");
run("Clear Results");
measures = newArray("Area", "Mean", "X", "Y", "Perim.", "Circ.");
for (i = 0; i < roiManager("count"); i++) {
    roiManager("select", i);
    setResult("Cell", i, Roi.getName);
    setResult("Class", i, Roi.getProperty("class"));
    setResult("Score", i, Roi.getProperty("score"));
    List.setMeasurements;
    for (j = 0; j < measures.length; j++)
        setResult(measures[j], i, List.getValue(measures[j]));
}
roiManager("deselect");
run("Select None");
updateResults();
print("" + roiManager("count") + " cells");
